"""Two processes of a command do what one does, also where they were killed; or it refuses them."""

import re
import weakref
from dataclasses import replace
from multiprocessing.connection import wait

import pytest
import torch
from torch.testing import assert_close

from common.accelerator import make_accelerator
from common.files import read_json, write_json
from common.processes import share_batches
from data.video.decode import read_frames
from data.video.probe import probe
from scripts import train_vae
from tests.builders.command_cases import CASES, assert_same, changed, run_until
from tests.builders.processes import begin_ranks, run_ranks
from tests.builders.training_runs import video_run

pytestmark = pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")
TRAINING = [name for name in CASES if name.startswith("train")]
EXACT = ["make_shards", "cache_latents", "eval_fvd", "eval_is"]
ALONE = sorted(CASES.keys() - {*TRAINING, *EXACT, "sample"})
"""Commands that one process does. An experiment starts others, which several may do."""
LOOSE = re.compile("norm|weight|ssim")  # small differences of large numbers


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    """Bytes are compared, and CUDA does not survive a fork."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def share(folder, count, size, bad):
    """Write what a process did and got of `count` numbers in batches; number `bad` is refused."""
    rank, done = make_accelerator().process_index, []

    def work(numbers):
        done.extend(numbers)
        if bad in numbers:
            raise ValueError(f"number {bad}")
        return [number**2 for number in numbers]

    try:
        found = share_batches(count, size, work)
    except ValueError as error:
        found = str(error)
    write_json(folder / f"{rank}.json", {"done": done, "found": found})


@pytest.mark.parametrize(
    ("count", "size", "done"),
    [
        (7, 2, [[0, 1, 6], [2, 3], [4, 5]]),
        (5, 4, [[0, 1, 2, 3], [4], []]),  # the batches of one process
        (2, 1, [[0], [1], []]),
    ],
)
def test_each_process_does_its_share_and_all_get_all_results_in_order(count, size, done, tmp_path):
    run_ranks(3, share, tmp_path, count, size, None)
    results = [read_json(tmp_path / f"{rank}.json") for rank in range(3)]
    assert [result["done"] for result in results] == done
    for result in results:
        assert [x for batch in result["found"] for x in batch] == [i**2 for i in range(count)]


def test_what_one_process_refuses_all_refuse(tmp_path):
    run_ranks(3, share, tmp_path, 7, 2, 3)
    results = [read_json(tmp_path / f"{rank}.json") for rank in range(3)]
    assert [result["found"] for result in results] == ["number 3"] * 3


@pytest.mark.parametrize("name", TRAINING)
def test_two_processes_learn_what_one_does(name, project, straight, tmp_path):
    case = CASES[name]
    run_ranks(2, case.run, changed(case.config(project, tmp_path), case.in_two))
    one, two = case.contents(straight(name)), case.contents(tmp_path)
    assert one.keys() == two.keys()
    for x, y in zip(one.pop("log"), two.pop("log"), strict=True):
        assert x.keys() == y.keys()
        for key in x:
            assert_close(x[key], y[key], rtol=1e-3 if LOOSE.search(key) else 1e-5, atol=1e-6)
    for file in (key for key in one if key.endswith(".safetensors")):
        # Adam's first steps make much of rounding where a gradient is nearly zero
        assert_close(one[file], two[file], rtol=0, atol=1e-3)
        for key, x in one[file].items():
            assert (x.float() - two[file][key].float()).abs().mean() < 5e-5, key
    previews = [{f.name: f for f in (x / "samples").glob("*")} for x in (straight(name), tmp_path)]
    assert previews[0].keys() == previews[1].keys()
    for file, path in previews[0].items():
        numbers = range(probe(path).frames)
        x, y = (read_frames(each, numbers).astype(int) for each in (path, previews[1][file]))
        assert abs(x - y).mean() < 1
    random = tmp_path.glob("checkpoints/*/random_states_*.pkl")
    assert len({file.name for file in random}) == 2  # so they knew of each other


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_write_the_bytes_of_one_though_killed_before(
    name, project, straight, tmp_path
):
    case, config = CASES[name], CASES[name].config(project, tmp_path)
    ranks = begin_ranks(2, run_until, 2, True, case.run, config)
    wait([rank.sentinel for rank in ranks])
    for rank in ranks:  # the other one may wait for the first to die
        rank.kill()
        rank.join()
    assert any(rank.exitcode for rank in ranks)
    run_ranks(2, case.run, config)
    assert_same(case.contents(tmp_path), case.contents(straight(name)))


@pytest.mark.parametrize("name", EXACT)
def test_one_process_goes_on_with_what_two_have_done(name, project, straight, tmp_path):
    case, config = CASES[name], CASES[name].config(project, tmp_path)
    run_ranks(2, case.run, config)
    lost = sorted(tmp_path.glob(case.kept))[::2]
    for path in lost:
        path.unlink()
    case.run(config)
    assert all(path.exists() for path in lost)
    assert_same(case.contents(tmp_path), case.contents(straight(name)))


def test_two_processes_sample_the_clips_of_one(project, straight, tmp_path):
    case, one = CASES["sample"], straight("sample")
    run_ranks(2, case.run, case.config(project, tmp_path))
    names = sorted(path.name for path in one.glob("clip-*.mkv"))
    assert names == sorted(path.name for path in tmp_path.glob("clip-*.mkv"))
    assert read_json(tmp_path / "samples.json") == read_json(one / "samples.json")
    clips = [[read_frames(f / n, range(5)).astype(int) for n in names] for f in (one, tmp_path)]
    for x, y in zip(*clips, strict=True):
        assert abs(x - y).max() <= 1  # the sizes of the batches differ, and so their rounding
        assert (x != y).mean() < 0.01
    assert (clips[0][0] != clips[0][1]).mean() > 0.5


@pytest.mark.parametrize("name", ALONE)
def test_commands_of_one_process_refuse_several_and_write_nothing(
    name, project, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but this command runs in one process"):
        CASES[name].run(CASES[name].config(project, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def outlives_the_run(config):
    """Train, and see that no model was the last to hold the group of the processes."""
    init = torch.distributed.init_process_group
    groups = []

    def remember(*args, **options):
        init(*args, **options)
        groups.append(weakref.ref(torch.distributed.group.WORLD))

    torch.distributed.init_process_group = remember
    train_vae.run(config)
    assert not torch.distributed.is_initialized()
    assert groups[0]() is not None


def test_the_group_of_processes_outlives_the_models_on_it(project, tmp_path):
    """Else a complete run may never end: DDP holds the GIL for which the group's thread waits."""
    config = video_run(tmp_path, project / "shards", steps=1)
    run_ranks(2, outlives_the_run, replace(config, num_previews=0))
