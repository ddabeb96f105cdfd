"""Batch order: an epoch is a permutation, ranks a partition, batches follow from the step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.clips.batch_order import SHARDS_PER_GROUP, BatchOrder

sizes = st.lists(st.integers(0, 12), min_size=1, max_size=40).filter(lambda x: sum(x) > 0)
seeds = st.integers(0, 2**31)


@given(shard_sizes=sizes, seed=seeds, data=st.data())
def test_an_epoch_visits_each_sample_at_most_once(shard_sizes, seed, data):
    total = sum(shard_sizes)
    order = BatchOrder(shard_sizes, data.draw(st.integers(1, total)), seed)
    for epoch in (0, 3):
        first = epoch * order.steps_per_epoch
        seen = [s for step in range(order.steps_per_epoch) for s in order.batch(first + step)]
        assert {e for e, _ in seen} == {epoch}
        indices = [i for _, i in seen]
        assert len(set(indices)) == len(indices)
        assert set(indices) <= set(range(total))
        assert total - len(indices) < order.batch_size  # only the tail is dropped
        assert sorted(order.epoch_order(epoch).tolist()) == list(range(total))


@given(shard_sizes=sizes, seed=seeds, world_size=st.integers(1, 4), data=st.data())
def test_ranks_partition_the_batch_in_order(shard_sizes, seed, world_size, data):
    total = sum(shard_sizes)
    if total < world_size:
        return
    local = data.draw(st.integers(1, total // world_size))
    order = BatchOrder(shard_sizes, local * world_size, seed)
    step = data.draw(st.integers(0, 100))
    parts = [order.local_batch(step, rank, world_size) for rank in range(world_size)]
    assert all(len(part) == local for part in parts)
    assert [sample for part in parts for sample in part] == order.batch(step)


@given(shard_sizes=sizes, seed=seeds, steps=st.lists(st.integers(0, 500), max_size=6))
def test_a_batch_does_not_depend_on_what_was_asked_before(shard_sizes, seed, steps):
    used = BatchOrder(shard_sizes, 1, seed)
    for step in steps:
        assert used.batch(step) == BatchOrder(shard_sizes, 1, seed).batch(step)


def test_epochs_and_seeds_give_different_orders():
    orders = [
        BatchOrder([50] * 4, 8, seed).epoch_order(epoch) for seed in (0, 1) for epoch in (0, 1)
    ]
    for i, a in enumerate(orders):
        for b in orders[i + 1 :]:
            assert (a == b).mean() < 0.1


def test_the_order_is_the_same_on_every_machine_and_day():
    order = BatchOrder([3, 4], 2, seed=7).epoch_order(epoch=2)
    assert order.tolist() == ORDER_OF_SEED_7_EPOCH_2


ORDER_OF_SEED_7_EPOCH_2 = [2, 5, 3, 0, 1, 6, 4]


def test_samples_are_mixed_inside_groups_of_shards_only():
    shards, size = 40, 100
    order = BatchOrder([size] * shards, 1, seed=0).epoch_order(0) // size
    groups = shards // SHARDS_PER_GROUP
    parts = [set(part.tolist()) for part in np.split(order, groups)]
    assert sorted(s for part in parts for s in part) == list(range(shards))  # no shard in two
    assert len(set(order[: 2 * SHARDS_PER_GROUP].tolist())) > 4  # and mixed from the first sample


def test_the_order_of_an_epoch_is_made_once():
    made = []

    class Counted(BatchOrder):
        def epoch_order(self, epoch):
            made.append(epoch)
            return super().epoch_order(epoch)

    order = Counted([1000] * 1000, 256, seed=0)
    for step in range(1000):
        order.batch(step)
    assert made == [0]


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match=r"7 items, .* global batch of 8"):
        BatchOrder([3, 4], 8, seed=0)
    with pytest.raises(ValueError, match="0 items"):
        BatchOrder([], 8, seed=0)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        BatchOrder([3], 0, seed=0)


def test_processes_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"3 processes .* batch of 8.*2 .* 9"):
        BatchOrder([30], 8, seed=0).local_batch(0, 0, 3)
