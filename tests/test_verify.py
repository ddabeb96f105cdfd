"""Every kind of damage is found and named; whole data pass."""

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from common.cli import parse
from common.files import sha256_file
from data.shards.index import ShardIndex
from data.verify import verify
from scripts.verify_data import VerifyData, run
from tests.builders.latent_caches import complete, damage, make_cache
from tests.builders.packed import pack


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    pack(folder, [9, 7, 11, 8])
    cache = make_cache(folder / "latents", folder / "shards", stride=1)
    complete(cache)
    return folder


@pytest.fixture
def shards(originals, tmp_path):
    return shutil.copytree(originals / "shards", tmp_path / "shards")


@pytest.fixture
def latents(originals, tmp_path):
    return shutil.copytree(originals / "latents", tmp_path / "latents")


def found(folder, **options):
    return [
        (p.file.rsplit("/", 1)[-1], p.key, p.reason)
        for p in verify(folder, progress=False, **options).problems
    ]


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_data_pass(shards, latents, workers):
    result = verify(shards, workers=workers, progress=False)
    assert (result.kind, result.files, result.items, result.problems) == ("shards", 2, 4, ())
    result = verify(latents, workers=workers, progress=False)
    assert (result.kind, result.items, result.problems) == ("latents", 16, ())


def test_a_flipped_bit_in_a_shard_is_found_and_the_video_named(shards):
    sample = ShardIndex.load(shards).entries[2]
    with open(shards / "shard-000001.tar", "r+b") as file:
        file.seek(sample.members["mp4"][0])
        file.write(b"<html>")
    (a, b) = found(shards)
    assert a == ("shard-000001.tar", None, "its sha256 is not the one in the index")
    assert b[:2] == ("shard-000001.tar", "video2")
    assert "HTML" in b[2]
    assert found(shards, decode="none") == [a]


def test_missing_and_truncated_shards(shards):
    (shards / "shard-000000.tar").unlink()
    path = shards / "shard-000001.tar"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(ShardIndex.load(shards, check=False).entries[3].members["mp4"][0] + 100)
    problems = found(shards)
    assert problems[0] == ("shard-000000.tar", None, "is missing")
    assert f"the index says {size}" in problems[1][2]
    assert "is no readable tar" in problems[2][2]
    assert [p[1] for p in problems[3:]] == ["video3"]
    assert "the shard is cut short" in problems[3][2]


def test_an_index_that_says_something_else_than_the_shards(shards):
    def change(index):
        index["entries"]["frames"][0] += 1
        index["entries"]["members"]["mp4"]["offset"][1] += 512
        index["entries"]["key"][3] = "video2"

    edit(shards / "index.json", change)
    reasons = [(key, reason) for _, key, reason in found(shards, decode="ends")]
    assert ("video1", "no member mp4 where the index says") in reasons
    assert ("video2", "the key occurs twice") in reasons
    assert ("video0", "9x64x96, the index says 10x64x96") in reasons
    assert len([key for key, _ in reasons if key == "video1"]) == 2


def test_damaged_latents(latents):
    damage(latents / "latents-000001.safetensors")
    (latents / "latents-000002.safetensors").unlink()
    with open(latents / "latents-000003.safetensors", "r+b") as file:
        file.truncate(100)
    assert [(file, reason.split(",")[0]) for file, _, reason in found(latents)] == [
        ("latents-000001.safetensors", "its sha256 is not the one in the manifest"),
        ("latents-000002.safetensors", "is missing"),
        ("latents-000003.safetensors", "100 bytes"),
    ]


def rewrite(latents, number, change):
    """Change a shard's content and let the manifest agree with its bytes."""
    path = latents / f"latents-{number:06d}.safetensors"
    tensors = load_file(path)
    keys = json.loads(path.with_suffix(".json").read_text())
    names = {0: ["video0:0", "video0:0:flip", "video0:1"]}.get(number, ["video0:1", "a", "b"])
    assert keys["count"] == 3
    change(tensors)
    save_file(tensors, path, {"keys": json.dumps(names)})

    def update(manifest):
        entry = manifest["shards"][number]
        entry["sha256"], entry["bytes"] = sha256_file(path), path.stat().st_size

    edit(latents / "manifest.json", update)


def test_wrong_values_keys_labels_and_statistics(latents):
    def spoil(tensors):
        tensors["moments"][1, 0, 0, 0, 0] = float("nan")
        tensors["label"][2] = 7

    rewrite(latents, 0, spoil)
    rewrite(latents, 1, lambda tensors: None)
    problems = [(key, reason) for _, key, reason in found(latents)]
    assert ("video0:0:flip", "is not finite") in problems
    assert ("video0:1", "label 7 of 2 classes") in problems
    assert ("video0:1", "the key occurs twice") in problems


def test_statistics_and_totals_are_computed_again(latents):
    def change(manifest):
        manifest["statistics"]["std"][1] *= 1.001
        manifest["totals"]["items"] = 9

    edit(latents / "manifest.json", change)
    assert [reason for _, _, reason in found(latents)] == [
        "9 items in the totals, 16",
        "std is not that of the latents",
    ]


def test_an_incomplete_cache_and_no_data(latents, tmp_path):
    (latents / "manifest.json").unlink()
    for folder in (latents, tmp_path):
        with pytest.raises(ValueError, match=r"neither index.json .*nor manifest.json"):
            verify(folder)


def test_the_command_reports_and_exits_with_one(shards, tmp_path, capsys):
    def command(**options):
        options = {"data": shards, "workers": 0, **options}
        run(parse(VerifyData, [f"--{name}={value}" for name, value in options.items()]))

    command(decode="ends")
    assert "2 shards, 4 shards" not in (line := capsys.readouterr().out)
    assert "the first and last frame of each video decoded; no problems" in line
    (shards / "shard-000000.tar").unlink()
    with pytest.raises(SystemExit) as stop:
        command(report=tmp_path / "report.json")
    assert stop.value.code == 1
    assert "shard-000000.tar: is missing" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is False
    assert report["problems"][0]["reason"] == "is missing"
    with pytest.raises(ValueError, match="workers=-1"):
        command(workers=-1)
