"""Exports that webdataset reads, and the look into a cache."""

import shutil

import numpy as np
import pytest
import webdataset
from matplotlib.image import imread

from common.cli import parse
from data.latents.dataset import LatentDataset
from data.latents.inspection import export_latents
from data.video.probe import probe
from scripts.export_latents import ExportLatents
from scripts.export_latents import run as export
from scripts.inspect_cache import InspectCache
from scripts.inspect_cache import run as inspect
from tests.builders.cache_command import cache, write_inputs
from tests.builders.latent_caches import complete, edit, make_cache
from tests.builders.packed import pack


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    pack(folder, [9, 7, 11])
    made = make_cache(folder / "latents", folder / "shards", stride=1)
    complete(made)
    return folder / "latents"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves shards to the collector
def test_webdataset_reads_an_export(cached, tmp_path):
    latents = LatentDataset(cached)
    tars = export_latents(latents, tmp_path / "out")
    assert len(tars) == len(latents.shard_sizes)
    samples = list(webdataset.WebDataset(list(map(str, tars)), shardshuffle=False).decode())
    assert len(samples) == len(latents)
    for index, sample in enumerate(samples):
        item = latents.raw(index)
        assert sample["__key__"] == item["key"]
        assert np.array_equal(sample["npy"], item["moments"].numpy())
        assert sample["npy"].dtype == np.float16
        assert sample["cls"] == sample["json"]["label"] == item["label"]
        assert sample["json"]["class_name"] == "ab"[item["label"]]
        assert (sample["json"]["start"], sample["json"]["flip"]) == (item["start"], item["flip"])
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (
        cached / "manifest.json"
    ).read_bytes()


def test_an_export_goes_on_and_is_not_mixed_with_another(cached, tmp_path, capsys):
    out = tmp_path / "out"
    command = parse(ExportLatents, [f"--latents={cached}", f"--out={out}"])
    export(command)
    assert "12 latents in 4 tars" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    (out / "latents-000001.tar").unlink()
    kept = (out / "latents-000000.tar").stat().st_mtime_ns
    export(command)
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == before
    assert (out / "latents-000000.tar").stat().st_mtime_ns == kept
    other = shutil.copytree(cached, tmp_path / "other")
    edit(other, frame_rate=1.0)
    with pytest.raises(ValueError, match=rf"latents was .* now {other} \(sha256"):
        export_latents(LatentDataset(other), out)
    (out / "identity.json").unlink()
    with pytest.raises(ValueError, match=r"latents-\d+.tar without identity.json"):
        export_latents(LatentDataset(cached), out)


def test_inspection_shows_counts_statistics_and_pictures(inputs, tmp_path, capsys):
    cache(inputs, tmp_path / "c")

    def command(**options):
        options = {"latents": tmp_path / "c", "out": tmp_path / "look", **options}
        inspect(parse(InspectCache, [f"--{name}={value}" for name, value in options.items()]))

    command()
    text = capsys.readouterr().out
    assert "3 videos, 0 too_short, 12 items, 0 failures" in text
    assert "latents 4x2x2x4 of 5 frames at stride 2, 16x32 pixels" in text
    assert "class a: 8" in text
    assert text.count("  channel ") == 4
    assert not (tmp_path / "look").exists()
    command(vae=inputs / "vae", data=inputs / "shards", num_clips=3)
    text = capsys.readouterr().out
    assert text.count(" dB") == 3
    assert imread(tmp_path / "look" / "grid.png").shape[:2] == (3 * 2 * 16, 3 * 32)
    info = probe(tmp_path / "look" / "grid.mp4")
    assert (info.frames, info.height, info.width) == (5, 32, 96)
    command(vae=inputs / "vae", num_clips=2)
    assert probe(tmp_path / "look" / "grid.mp4").height == 16
    other = pack(tmp_path / "other", [12, 9, 11])
    with pytest.raises(ValueError, match=r"not what .* was made from"):
        command(vae=inputs / "vae", data=other)
    for options in ({"num_clips": 0}, {"data": other}):
        with pytest.raises(ValueError, match=r"num_clips=0|data requires vae or card"):
            command(**options)
