"""The script: a tiny VAE and packed videos in, a cache out; again, with nothing to do."""

import re
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from common.accelerator import inference_precision
from common.cli import main
from common.pixels import to_float
from data.clips.dataset import ClipConfig, ClipDataset
from data.clips.options import Cut
from data.latents.dataset import LatentDataset
from data.verify import verify
from scripts.cache_latents import CacheLatents, run
from tests.builders.cache_command import arguments, cache, write_inputs
from vae import VideoVAE
from vae.parts import encoder_hash

SCRIPT = Path(__file__).parents[1] / "scripts" / "cache_latents.py"
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def cpu():
    """Bytes are compared, and CUDA does not survive a fork."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def out(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "latents"
    cache(inputs, folder)
    return folder


def test_the_cache_holds_the_moments_of_the_clips(inputs, out):
    latents = LatentDataset(out)
    vae = VideoVAE.from_pretrained(inputs / "vae")
    latents.check_encoder(encoder_hash(vae))
    assert not verify(out).problems
    assert latents.latent_shape == (4, 2, 2, 4)
    assert latents.manifest["vae"]["precision"] == inference_precision("auto")  # not "auto"
    assert len(latents) == 3 * 2 * 2
    config = ClipConfig(folder=str(inputs / "shards"), frames=5, stride=2, height=16, width=32)
    clips = ClipDataset(config, seed=0)
    for index in (0, 5, 11):
        item = latents.raw(index)
        video = clips.clip(index // 4, Cut(item["start"], flip=item["flip"]))
        with torch.inference_mode():
            expected = vae.encode(to_float(video[None])).moments[0]
        assert_close(item["moments"].float(), expected, rtol=1e-3, atol=1e-3)


def test_precision_is_bf16_on_a_gpu_alone_unless_it_is_given(monkeypatch):
    for cuda, auto in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert [inference_precision(p) for p in ("auto", "no", "fp16")] == [auto, "no", "fp16"]


def test_a_second_run_says_that_there_is_nothing_to_do(inputs, out, capsys):
    before = {path: path.stat().st_mtime_ns for path in out.glob("[!.]*")}
    cache(inputs, out)
    assert "2 of 2 shards are there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.glob("[!.]*")} == before


def test_a_disk_that_fills_up_is_one_line_and_a_rerun_goes_on(
    inputs, small_disk, tmp_path, monkeypatch, capsys
):
    options = {"items_per_shard": 4, "batch_size": 4}
    out, others, encode = small_disk / "c", small_disk / "others", VideoVAE.encode
    calls = []

    def encode_while_others_write(*arguments):
        calls.append(1)
        if len(calls) == 3:  # while the thread writes the first shard, or after that
            for _ in range(3000):
                if (out / "latents-000000.json").exists():
                    break
                time.sleep(0.01)
            with open(others, "wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))
        return encode(*arguments)

    monkeypatch.setattr(VideoVAE, "encode", encode_while_others_write)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments(inputs, out, **options)])
    with pytest.raises(SystemExit) as end:
        main(CacheLatents, run)
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
    assert contents(out) == contents(tmp_path / "straight")  # and nothing left behind


def test_it_says_where_the_time_went(inputs, tmp_path, capsys):
    cache(inputs, tmp_path / "c")
    assert re.search(r"decode \d+%, encode \d+%, write \d+%", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.frames": 6}, r"6 frames, but the VAE needs 1 \+ 4n. Use 5 or 9"),
        ({"data.height": 20}, "height 20, but the VAE needs a multiple of 8"),
        ({"seed": 1}, "cache.seed was 0, now 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"data.folder": "nowhere"}, "nowhere: no index.json"),
    ],
)
def test_mistakes_are_refused(inputs, out, change, message):
    with pytest.raises(ValueError, match=message):
        cache(inputs, out, **change)
