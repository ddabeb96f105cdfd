"""The chain from VAEs to a generator's score: a tiny run, its resumption, its tables, bad input."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from common import stages
from common.cli import parse
from common.files import read_json
from eval.experiments.chain import Row, rank_correlations
from eval.results.experiment_tables import chain_tables
from scripts import (
    cache_latents,
    chain,
    eval_fvd,
    eval_is,
    inspect_cache,
    make_shards,
    report,
    sample,
    train_latte,
    train_vae,
)
from scripts.chain import Chain
from tests.builders.commands import ROOT, run_stage_here
from tests.builders.packed import pack
from tests.builders.training_runs import MODEL
from vae import VideoVAE

CELL = ["train_vae.py", "cache_latents.py", "inspect_cache.py", "train_latte.py", "sample.py"]
CELL += ["eval_fvd.py", "eval_is.py"]
"""The stages of a row that is trained."""
SIZE = {"frames": 5, "height": 32, "width": 32}
VAE = {"z_dim": 4, "dim": 4, "channel_multipliers": [1, 1, 2, 2], "num_blocks": 1}
TRAIN = {"folder": "x", "steps": 2, "global_batch_size": 2, "save_every": 2, "learning_rate": 1e-3}


@pytest.fixture
def tiny(tmp_path) -> Chain:
    """Two rows: one is trained, one is given."""
    shards = str(pack(tmp_path, [9, 8, 7, 9]))
    torch.manual_seed(0)
    VideoVAE(MODEL).save_pretrained(tmp_path / "given")
    data = {"folder": shards, **SIZE}
    latte = {"size": "custom", "hidden_size": 16, "depth": 2, "num_heads": 2, "patch_size": 1}
    configs = {
        "vae": {
            **{"train": TRAIN, "data": data, "model": VAE, "num_previews": 0},
            "loss": {"perceptual": "none"},
        },
        "latents": {"data": data, "workers": 0},
        "card": {"num_clips": 1, "denoiser": {"steps": 2, "hidden_size": 8}},
        "latte": {"train": TRAIN, "latents": "x", "flow": {}, "model": latte},
        "samples": {
            **{"latte": "x", "vae": "x", "out": "x", "num_clips": 2},
            "sampler": {"method": "euler", "steps": 2},
        },
        "score": {
            **{"real": shards, "frames": 4, "stride_real": 1, "skip_fake": 0, "num_clips": 2},
            "resamples": 0,
        },
        "inception": {"num_clips": 2, "runs": 1, "splits": 1, "frames": 4, "skip_fake": 0},
        "classifier": {"train": TRAIN, "data": {**data, "frames": 4}, "channels": 8},
    }
    paths = {}
    for name, values in configs.items():
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(values))
    options = {"regularizers.frame_difference": "{}"}
    rows = (
        Row(name="trained", train=paths.pop("vae"), options=options),
        Row(name="given", vae=str(tmp_path / "given")),
    )
    return Chain(folder=tmp_path / "chain", rows=rows, seeds=(3,), **paths)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The commands that ran, each in this process; "stop NAME" among them ends the run there."""
    done: list[str] = []

    def call(command):
        script = Path(command[1]).name
        if (stop := f"stop {script}") in done:
            done.remove(stop)
            raise KeyboardInterrupt
        done.append(script)
        return run_stage_here(command)

    monkeypatch.setattr(stages, "call", call)
    return done


def test_a_chain_of_two_rows_is_stopped_and_goes_on(tiny, calls, capsys):
    calls.append("stop train_latte.py")
    with pytest.raises(KeyboardInterrupt):
        chain.run(tiny)
    assert calls == ["train_vae.py", "train_classifier.py", *CELL[:3]]
    chain.run(tiny)
    # a step of what is to be trained, the classifier, then each row's stages, each once
    assert calls == ["train_vae.py", "train_classifier.py", *CELL, *CELL[1:]]
    result = read_json(tiny.folder / "chain.json")
    cells = {name: of["3"] for name, of in result["cells"].items()}
    assert set(cells) == {"trained", "given"}
    for name, cell in cells.items():
        assert cell["score"] >= 0
        assert cell["clips"] == 2
        assert 1 <= cell["is"] <= 2
        card = tiny.folder / name / ("seed-3" if name == "trained" else "") / "card.json"
        assert cell["measures"] == read_json(card)["measures"]
    assert result["correlations"] == {}  # of two rows
    assert cells["trained"]["measures"]["modes_90"] > 0
    run = tiny.folder / "trained" / "seed-3"
    made = read_json(run / "vae" / "identity.json")["config"]
    assert made["train"]["seed"] == 3
    assert made["regularizers"]["frame_difference"] == {"weight": 1.0}
    text = (tiny.folder / "chain.md").read_text()
    assert text in capsys.readouterr().out
    assert "| trained |" in text

    # Nothing is repeated; another seed trains anew but shares the given VAE's latents
    count = len(calls)
    chain.run(tiny)
    assert len(calls) == count
    chain.run(replace(tiny, seeds=(3, 4)))
    assert calls[count:] == [*CELL, *CELL[3:]]
    assert " ± " in (tiny.folder / "chain.md").read_text()

    # A VAE, or a config, that has changed is told
    torch.manual_seed(1)
    VideoVAE(MODEL).save_pretrained(tiny.rows[1].vae)
    with pytest.raises(ValueError, match=r"given.stages.latents.json: .*given.model.safetensors"):
        chain.run(tiny)
    tiny.score.write_text(tiny.score.read_text() + "batch_size: 1\n")
    with pytest.raises(ValueError, match=r"trained.seed-3.stages.fvd.json: .*score.yaml"):
        chain.run(tiny)


def test_a_mistake_in_any_row_is_told_before_the_first_run(tiny, calls):
    wrong = replace(tiny.rows[0], name="wrong", options={"architecture": "ivaee"})
    with pytest.raises(ValueError, match="architecture='ivaee'"):
        chain.run(replace(tiny, rows=(*tiny.rows, wrong)))
    assert calls == ["train_vae.py", "train_vae.py"]
    assert not (tiny.folder / "trained").exists()
    missing = Row(name="missing", vae="cv_vae:nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        chain.run(replace(tiny, rows=(missing,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ()}, "rows"),
        ({"seeds": (1, 1)}, r"seeds=\(1, 1\): contains duplicates"),
        ({"latents": Path("none.yaml")}, "none.yaml: no such config file"),
    ],
)
def test_mistakes_are_refused(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        replace(tiny, **options)
    with pytest.raises(ValueError, match=r"\['given', 'given'\]: contains duplicates"):
        replace(tiny, rows=tiny.rows[1:] * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either train or vae"),
        ({"train": Path("a.yaml"), "vae": "b"}, "give either train or vae"),
        ({"vae": "b", "options": {"a": "b"}}, "options are those of train"),
        (
            {"train": Path("a.yaml"), "options": {"train.seed": "1"}},
            "train.seed is set by chain.py",
        ),
        ({"name": "a/b", "vae": "b"}, "not a valid file name"),
    ],
)
def test_rows_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Row(**{"name": "row", **options})


def test_measures_rank_with_the_score_over_the_means_of_rows():
    scores = {"a": [1.0, 3.0], "b": [4.0, 6.0], "c": [9.0, 11.0], "d": [20.0, 20.0]}
    measures = {
        name: [{"same": value, "turned": -value, "flat": 1.0, "few": value} for value in values]
        for name, values in scores.items()
    }
    for name in ("a", "b"):
        for each in measures[name]:
            del each["few"]
    rows = {
        name: [
            {"measures": each, "score": score}
            for each, score in zip(measures[name], scores[name], strict=True)
        ]
        for name in scores
    }
    found = rank_correlations(rows)
    assert found["same"]["rho"] == pytest.approx(1)
    assert found["turned"]["rho"] == pytest.approx(-1)
    assert found["same"]["rows"] == 4
    assert set(found) == {"same", "turned"}


def test_the_page_shows_a_chain(tmp_path):
    cell = {"name": "fvd_x", "clips": 2, "seconds": {"vae": 60.0}, "is": 2.5, "recognized": 0.75}
    cells = {
        name: {"0": {**cell, "score": float(i), "measures": {"modes_90": i, "noise_psnr_0.1": 3.0}}}
        for i, name in enumerate("abc")
    }
    correlations = {"modes_90": {"rho": 1.0, "p": 0.04, "rows": 3}}
    result = {"kind": "chain", "cells": {**cells, "later": {}}, "correlations": correlations}
    tables = chain_tables(result)
    assert [len(table.rows) for table in tables] == [3, 1]
    assert [str(name) for name in tables[0].rows[1][:4]] == ["b", "1.00", "2.50", "0.750"]
    stages.write_json(tmp_path / "chain.json", result)
    page = tmp_path / "page.html"
    report.run(report.MakeReport(results=[f"digits={tmp_path / 'chain.json'}"], out=str(page)))
    assert "Rank correlation with fvd_x" in page.read_text()


def test_the_experiment_on_digits_is_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = parse(Chain, ["--config", "configs/digits/chain.yaml"])
    assert len(found.rows) * len(found.seeds) == 30
    parse(train_vae.TrainVAE, ["--config", "configs/digits/chain/image.yaml"])
    for row in found.rows:
        flags = [f"--{name}={value}" for name, value in row.options.items()]
        parse(train_vae.TrainVAE, ["--config", str(row.train), *flags])
    for file, command in (
        (found.latents, cache_latents.CacheLatents),
        (found.card, inspect_cache.InspectCache),
        (found.latte, train_latte.TrainLatte),
        (found.samples, sample.Sample),
        (found.score, eval_fvd.EvalFVD),
        (found.inception, eval_is.EvalIS),
    ):
        flags = {"latents.yaml": ["--vae=x", "--out=x"], "card.yaml": ["--latents=x"]}
        flags |= {"score.yaml": ["--fake=x"], "inception.yaml": ["--fake=x"]}
        parse(command, ["--config", str(file), *flags.get(file.name, [])])
    packed = parse(make_shards.COMMANDS["digits"], ["--config", "configs/digits/data/plain.yaml"])
    assert str(packed.out) == found.clips["data"]["folder"]
