"""The script: a tiny VAE and packed videos in, a cache out; again, with nothing to do."""

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from data.dataset import ClipConfig, ClipDataset
from data.latents import LatentDataset
from engine.cli import main, parse
from engine.lock import exclusive
from scripts.cache_latents import Config, run
from tests.packed import pack
from vae import VAEConfig, VideoVAE, weights_hash

SCRIPT = Path(__file__).parents[1] / "scripts" / "cache_latents.py"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    VideoVAE(VAEConfig(z_dim=4, dim=8)).save_pretrained(folder / "vae")
    pack(folder, [12, 9, 10])
    return folder


def arguments(inputs, out, **options):
    values = {
        "vae": inputs / "vae",
        "data": inputs / "shards",
        "out": out,
        "frames": 5,
        "interval": 2,
        "height": 16,
        "width": 32,
        "clips_per_video": 2,
        "flip": "true",
        "batch_size": 3,
        "workers": 0,
        "shard_items": 8,
        **options,
    }
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def cache(inputs, out, **options):
    run(parse(Config, arguments(inputs, out, **options)))


@pytest.fixture(scope="module")
def out(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "latents"
    cache(inputs, folder)
    return folder


def test_the_cache_holds_the_moments_of_the_clips(inputs, out):
    latents = LatentDataset(out)
    vae = VideoVAE.from_pretrained(inputs / "vae")
    latents.check_vae(weights_hash(vae))
    latents.verify()
    assert latents.latent_shape == (4, 2, 2, 4)
    assert len(latents) == 3 * 2 * 2
    config = ClipConfig(folder=str(inputs / "shards"), frames=5, interval=2, height=16, width=32)
    clips = ClipDataset(config, seed=0)
    for index in (0, 5, 11):
        item = latents.raw(index)
        video = clips.clip(index // 4, item["start"], flip=item["flip"])
        with torch.inference_mode():
            expected = vae.encode(video[None]).moments[0]
        assert_close(item["moments"].float(), expected, rtol=1e-3, atol=1e-3)


def test_a_second_run_says_that_there_is_nothing_to_do(inputs, out, capsys):
    before = {path: path.stat().st_mtime_ns for path in out.glob("[!.]*")}
    cache(inputs, out)
    assert "2 of 2 shards are there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.glob("[!.]*")} == before


def test_two_processes_make_the_same_cache(inputs, out, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments(inputs, tmp_path / "two")],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    (first, error), (second, _) = (process.communicate() for process in processes)
    assert [process.returncode for process in processes] == [0, 0], error
    assert "12 items" in first
    assert "12 items" not in second  # one main process, so they knew of each other
    for path in out.iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()


def test_a_run_killed_at_any_time_goes_on_to_the_same_bytes(inputs, out, tmp_path):
    command = [sys.executable, str(SCRIPT), *arguments(inputs, tmp_path / "c", shard_items=1)]
    straight = tmp_path / "straight"
    cache(inputs, straight, shard_items=1)
    shards = 12
    for least in (1, 5):  # shards that are there when it is killed
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(list((tmp_path / "c").glob("latents-*.json"))) < least:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert least <= len(list((tmp_path / "c").glob("latents-*.json"))) < shards
    cache(inputs, tmp_path / "c", shard_items=1)
    names = {path.name for path in straight.iterdir()}
    assert {path.name for path in (tmp_path / "c").iterdir()} == names  # nothing left behind
    for name in names:
        assert (tmp_path / "c" / name).read_bytes() == (straight / name).read_bytes()


def test_a_disk_that_fills_up_is_one_line_and_a_rerun_goes_on(
    inputs, small_disk, tmp_path, monkeypatch, capsys
):
    options = {"shard_items": 4, "batch_size": 4}
    out, others, encode = small_disk / "c", small_disk / "others", VideoVAE.encode
    calls = []

    def encode_while_others_write(*arguments):
        calls.append(1)
        if len(calls) == 3:  # the first shard is written by then, the last is not
            with open(others, "wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))
        return encode(*arguments)

    monkeypatch.setattr(VideoVAE, "encode", encode_while_others_write)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments(inputs, out, **options)])
    with pytest.raises(SystemExit) as end:
        main(Config, run)
    assert end.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(
        r"error: \S+/latents-00000\d\.\w+: No space left on device\. Free space .* then rerun\.",
        last,
    )
    assert (out / "latents-000000.json").exists()
    assert not (out / "latents-000002.safetensors").exists()
    others.unlink()
    calls.clear()
    cache(inputs, out, **options)
    assert "of 3 shards are there" in capsys.readouterr().out
    assert len(calls) < 3  # the first shard was not encoded again
    monkeypatch.undo()
    cache(inputs, tmp_path / "straight", **options)
    names = {path.name for path in (tmp_path / "straight").iterdir()}
    assert {path.name for path in out.iterdir()} == names  # nothing left behind
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_two_commands_cannot_write_the_same_cache(inputs, out):
    with (
        exclusive(out),
        pytest.raises(ValueError, match="another process is writing there"),
    ):
        cache(inputs, out)


def test_it_says_where_the_time_went(inputs, tmp_path, capsys):
    cache(inputs, tmp_path / "c")
    assert re.search(r"decode \d+%, encode \d+%, write \d+%", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 6}, r"6 frames, but the VAE needs 1 \+ 4n. Use 5 or 9"),
        ({"height": 20}, "height 20, but the VAE needs a multiple of 8"),
        ({"seed": 1}, "cache.seed was 0, now 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"data": "nowhere"}, "nowhere: no index.json"),
    ],
)
def test_mistakes_are_refused(inputs, out, change, message):
    with pytest.raises(ValueError, match=message):
        cache(inputs, out, **change)
