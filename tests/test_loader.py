"""The loader: the same batches for any number of workers and ranks, and from any step on."""

import random
import threading
from itertools import count

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import Dataset

from data.clips.batch_order import BatchOrder
from data.clips.batches import batches
from data.clips.dataset import ClipConfig, ClipDataset
from engine.prefetch import RECEIVED, received
from tests.builders.packed import pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pack(tmp_path_factory.mktemp("packed"), [16, 20, 14, 30, 13], class_names="abc")


def clips(folder, **options):
    config = {"frames": 3, "height": 32, "width": 32, "flip": True, **options}
    return ClipDataset(ClipConfig(folder=str(folder), **config), seed=3)


def load(dataset, start, stop, rank=0, world_size=1, workers=0, global_batch_size=2):
    order = BatchOrder(dataset.shard_sizes, global_batch_size, seed=5)
    return list(batches(dataset, order, start, stop, rank, world_size, workers))


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x["key"] == y["key"]
        assert_close(x["video"], y["video"], rtol=0, atol=0)
        assert_close(x["label"], y["label"], rtol=0, atol=0)
        assert x.keys() == y.keys()


def test_batches_do_not_depend_on_the_workers(folder):
    straight = load(clips(folder), 0, 7)
    assert_same(load(clips(folder), 0, 7, workers=2), straight)
    assert straight[0]["video"].shape == (2, 3, 3, 32, 32)
    assert straight[0]["label"].tolist() == [
        int(key.removeprefix("video")) % 3 for key in straight[0]["key"]
    ]


def test_a_resumed_run_gets_the_tail_of_the_straight_one(folder):
    straight = load(clips(folder), 0, 6)  # three epochs of two steps
    for step in (1, 2, 5):
        assert_same(load(clips(folder), step, 6), straight[step:])
    assert_same(load(clips(folder), 3, 6, workers=2), straight[3:])


def test_ranks_together_get_the_global_batch(folder):
    whole = load(clips(folder), 0, 4, global_batch_size=4)
    parts = [load(clips(folder), 0, 4, rank, 2, global_batch_size=4) for rank in (0, 1)]
    for batch, a, b in zip(whole, *parts, strict=True):
        assert a["key"] + b["key"] == batch["key"]
        assert_close(torch.cat([a["video"], b["video"]]), batch["video"], rtol=0, atol=0)


def test_epochs_differ(folder):
    dataset = clips(folder)
    first, second = (
        load(dataset, 0, 1, global_batch_size=5),
        load(dataset, 1, 2, global_batch_size=5),
    )
    assert sorted(first[0]["key"]) == sorted(second[0]["key"])
    assert first[0]["key"] != second[0]["key"]


def test_global_random_state_is_neither_used_nor_moved(folder):
    expected = load(clips(folder), 0, 2)
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    random.seed(9)
    before = torch.get_rng_state()
    assert_same(load(clips(folder), 0, 2), expected)
    assert torch.equal(torch.get_rng_state(), before)


class Threads(Dataset):
    """Says how many threads torch uses where its items are made."""

    shard_sizes = (4,)

    def __getitem__(self, item):
        return {"threads": torch.get_num_threads(), "video": torch.zeros(1), "key": "", "label": 0}


def test_workers_use_one_thread():
    assert load(Threads(), 0, 1, workers=1)[0]["threads"].tolist() == [1, 1]


class Batch:
    """Notes which thread draws it and which frees it."""

    def __init__(self, number, drawn, freed):
        self.number, self.freed = number, freed
        drawn.append(threading.current_thread())

    def __del__(self):
        self.freed.append(threading.current_thread())


def test_a_thread_receives_batches_before_they_are_asked_for_and_frees_them():
    drawn, freed, more = [], [], threading.Semaphore(0)

    def source():
        for number in range(6):
            yield Batch(number, drawn, freed)
            more.release()

    stream = received(source())
    assert next(stream).number == 0
    for _ in range(RECEIVED - 1):
        assert more.acquire(timeout=60)  # drawn without being asked for
    assert [next(stream).number for _ in range(5)] == [1, 2, 3, 4, 5]
    assert list(stream) == []
    assert len(freed) == 6
    (thread,) = {*drawn, *freed}
    assert thread not in {threading.main_thread(), *threading.enumerate()}


def test_a_thread_that_receives_batches_passes_errors_on_and_ends_with_its_stream():
    def fails_after(good):
        yield from range(good)
        raise ValueError("worker died")

    stream = received(fails_after(3))
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="worker died"):
        next(stream)
    before = threading.active_count()
    stream = received(count())
    assert next(stream) == 0
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_samples_of_workers_are_counted_here(tmp_path, workers):
    folder = pack(tmp_path, [13] * 4, broken=[1])
    lenient = clips(folder, max_error_fraction=0.25)
    loaded = load(lenient, 0, 4, workers=workers)  # two epochs
    for batch in loaded:
        assert "video1" not in batch["key"]
        assert "unreadable" not in batch
    # at least: a substitute may be unreadable, too
    assert sum(batch["unreadable_clips"].sum() for batch in loaded) >= 2
    assert list(lenient.unreadable.reasons) == ["video1"]
    with pytest.raises(ValueError, match=r"^video1: .* 1 unreadable of 4"):
        load(clips(folder), 0, 4, workers=workers)


def test_mistakes_are_refused_before_anything_is_read(folder):
    dataset = clips(folder)
    order = BatchOrder(dataset.shard_sizes, 4, seed=0)
    with pytest.raises(ValueError, match="3 processes do not divide"):
        batches(dataset, order, 0, 1, world_size=3)
    with pytest.raises(ValueError, match=r"rank 2 must be in \[0, 2\)"):
        batches(dataset, order, 0, 1, rank=2, world_size=2)
    with pytest.raises(ValueError, match="workers=-1"):
        batches(dataset, order, 0, 1, workers=-1)
