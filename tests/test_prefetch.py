"""The next batch is drawn while a step runs: its order, its thread, its errors."""

import threading

import pytest
import torch

from engine.prefetch import prefetch, to_device, with_draws

CPU = torch.device("cpu")
SECONDS = 30.0
"""After which a test gives up on a thread."""


def threads():
    return [each for each in threading.enumerate() if each.name.startswith("prefetch")]


def test_one_batch_is_drawn_ahead_by_a_thread_and_the_order_stays():
    drawn = [threading.Event() for _ in range(5)]
    names = []

    def batches():
        for i, event in enumerate(drawn):
            names.append(threading.current_thread().name)
            event.set()
            yield {"i": torch.tensor(i)}

    seen = []
    for batch in prefetch(batches(), CPU):
        i = int(batch["i"])
        seen.append(i)
        if i + 1 < len(drawn):
            assert drawn[i + 1].wait(SECONDS)  # while this batch is in use
        assert not any(event.is_set() for event in drawn[i + 2 :])
    assert seen == [0, 1, 2, 3, 4]
    assert names[0] == threading.main_thread().name  # where a loader may start its workers
    assert all(name.startswith("prefetch") for name in names[1:])
    assert not threads()


@pytest.mark.parametrize("bad", [0, 2])
def test_an_error_of_the_source_comes_where_the_batch_would_have_come(bad):
    def batches():
        for i in range(4):
            if i == bad:
                raise ValueError(f"video {i}")
            yield {"i": i}

    seen = []
    with pytest.raises(ValueError, match=f"video {bad}"):
        seen.extend(batch["i"] for batch in prefetch(batches(), CPU))
    assert seen == list(range(bad))
    assert not threads()


def test_the_thread_ends_when_a_run_ends_before_its_data():
    coming = prefetch(({"i": i} for i in range(100)), CPU)
    assert next(coming)["i"] == 0
    assert threads()
    coming.close()
    assert not threads()


def test_a_source_without_batches_gives_none():
    assert list(prefetch(iter(()), CPU)) == []


def test_draws_are_for_the_step_and_for_the_places_of_a_process():
    asked = []

    def batches(first):
        for step in range(first, 5):
            yield {"video": torch.full((2, 1), step)}

    def draw(batch, seed, step, positions):
        asked.append((int(batch["video"][0]), seed, step, positions))
        return {"noise": torch.tensor([*positions])}

    found = list(with_draws(batches, draw, seed=7, rank=1)(3))
    assert asked == [(3, 7, 3, range(2, 4)), (4, 7, 4, range(2, 4))]
    assert [batch["noise"].tolist() for batch in found] == [[2, 3], [2, 3]]
    assert [batch["video"].tolist() for batch in found] == [[[3], [3]], [[4], [4]]]


def test_tensors_go_to_the_device_and_the_rest_stays():
    batch = to_device({"video": torch.zeros(2), "key": ["a", "b"]}, torch.device("meta"))
    assert batch["video"].device.type == "meta"
    assert batch["key"] == ["a", "b"]
