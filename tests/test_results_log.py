"""Results that add up in one file, and their tables in LaTeX."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from common.files import read_json
from data.video.encode import write_video
from eval.features.classifier import ClassifierConfig, ClipClassifier
from eval.protocols.measurement import append_result, read_results
from eval.results.latex import joined_reconstructions, results_latex
from tests.builders.commands import run_script

pytestmark = pytest.mark.filterwarnings("ignore:.*clips. the distance is biased")


def result(name="fvd8_4f", value=10.0, std=None, std_over="bootstrap", **protocol):
    network = {"name": "tiny", "published_weights": False, "weights_sha256": "ab" * 32}
    return {
        "kind": "fvd",
        "name": name,
        "value": value,
        "std": std,
        "std_over": std_over,
        "protocol": {"frames": 4, "stride_real": 3, "network": network, **protocol},
        "fake": {"clips": 8, "content": "c"},
        "real": {},
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(0)
    for name, count in {"real": 8, "fake_1%": 6}.items():
        for i in range(count):
            clip = rng.integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
            write_video(folder / name / f"{i}.mkv", clip, 8, codec="ffv1")
    shape = ClassifierConfig(num_classes=3, width=8)
    ClipClassifier(shape).save_pretrained(folder / "tiny")
    return folder


def measure(root, script="eval_fvd.py", **options):
    given = {"classifier": root / "tiny", "frames": 4, "fake": root / "fake_1%"} | options
    if script == "eval_fvd.py":
        given = {"real": root / "real", "num_clips": 6, "stride_real": 1, "resamples": 2} | given
    return run_script(script, *(f"--{name}={value}" for name, value in given.items()))


def test_commands_add_their_results_once(root, tmp_path, capsys, monkeypatch):
    log, out = tmp_path / "results.jsonl", tmp_path / "fvd.json"
    for _ in range(2):
        assert measure(root, results=log, out=out) == 0
    text = capsys.readouterr().err
    assert [text.count(f"{log}: {what} {root}/fake_1%") for what in ("added", "holds already")] == [
        1,
        1,
    ]
    assert measure(root, results=log, label="ours", resamples=0) == 0
    scored = {"num_clips": 3, "runs": 2, "splits": 1, "skip_fake": 0}
    assert measure(root, "eval_is.py", results=log, **scored) == 0
    first, ours, score = read_results(log)
    whole = read_json(out)
    for name in ("value", "std", "protocol", "fake", "real"):
        assert first[name] == whole[name]
    assert first["command"].startswith("python ")
    assert set(first["versions"]) == {"python", "torch", "numpy", "scipy", "av"}
    assert (ours["label"], ours["std"], score["kind"]) == ("ours", None, "is")

    page, tables = tmp_path / "page.html", tmp_path / "tables.tex"
    assert run_script("report.py", f"--results={log}", f"--out={page}", f"--latex={tables}") == 0
    assert "fake_1%" in page.read_text()
    check_latex(tables.read_text())
    assert tables.read_text().count(r"fake\_1\% &") == 2  # a label is one of its kind

    # A page that cannot be made leaves the one before, and none in part
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    monkeypatch.setattr("eval.report.page._shared_scores", lambda section: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_script("report.py", f"--results={log}", f"--out={page}")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert run_script("report.py", f"--results={log}", f"--out={tmp_path}/page.txt") == 2
    assert "page.txt: a page's name ends in .html" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"schema": 0}', "line 1: schema 0, but this version reads 1"),
        ('{"schema": 1, "kind": "psnr"}', "line 1: kind 'psnr' is not one of"),
        ('{"schema": 1, "kind": "is", "label": "", "versions": {}}', "line 1: has no protocol"),
        ("[1", "line 1: not valid JSON"),
    ],
)
def test_a_file_of_another_schema_is_refused_before_anything_is_measured(
    root, tmp_path, capsys, line, message
):
    log = tmp_path / "results.jsonl"
    log.write_text(line + "\n")
    assert measure(root, results=log, real=tmp_path / "none") == 2
    (lines,) = capsys.readouterr().err.splitlines()
    assert f"{log}, {message}" in lines
    assert run_script("report.py", f"--results={log}", f"--out={tmp_path / 'page.html'}") == 2
    assert f"{log}, {message}" in capsys.readouterr().err
    assert log.read_text() == line + "\n"


def test_other_files_are_refused(root, tmp_path, capsys):
    assert measure(root, results=tmp_path / "results.json") == 2
    assert "must end in .jsonl" in capsys.readouterr().err
    assert measure(root, results=tmp_path) == 2
    assert f"results={tmp_path}: is a folder" in capsys.readouterr().err
    assert run_script("report.py", f"--results={tmp_path}") == 2
    assert "nothing to write: give --out, --latex or both" in capsys.readouterr().err


def test_nothing_is_lost_where_several_write_at_once(tmp_path):
    log = tmp_path / "results.jsonl"
    with ThreadPoolExecutor(8) as pool:
        added = list(
            pool.map(lambda i: append_result(log, result(value=float(i % 12)), "x"), range(24))
        )
    assert sum(added) == 12
    assert sorted(record["value"] for record in read_results(log)) == list(range(12))
    assert not append_result(log, result(value=3.0), "x")
    assert append_result(log, result(value=3.0), "another name")
    assert append_result(log, result(value=3.0, frames=5), "x")


def check_latex(text: str) -> None:
    """What LaTeX would stop at: braces, environments, cells of a row, characters it reads."""
    assert text.isascii()
    plain = re.sub(r"\\[\\&%$#_{}]", "", text.replace(r"\\" + "\n", "\n"))
    assert plain.count("{") == plain.count("}")
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        opened.append(name) if kind == "begin" else opened.remove(name)
    assert not opened
    assert not re.search(r"(?<!\\)[#%_~]", text)
    assert plain.count("$") % 2 == 0
    table = r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}"
    for spec, body in re.findall(table, text, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(spec) - 1


def test_rows_of_one_protocol_stand_together_and_footnotes_tell_what_differs():
    rows = [
        (r"a_1 & {50%} ~\x^2 #", result(value=12.0, std=1.5)),
        ("b", result(value=11.0, std=0.5, std_over="sets")),
        ("other stride", result(value=5.0, stride_real=1)),
        ("c", result(value=13.0)),
        ("fewer", result(name="fvd4_4f", value=90.0, stride_real=1)),
    ]
    text = results_latex(rows, [])
    check_latex(text)
    body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    _, first, second, third = body.split(r"\midrule")
    assert r"a\_1 \& \{50\%\} \textasciitilde{}\textbackslash{}x\textasciicircum{}2 \#" in first
    assert r"b$^{\dagger}$ & \textbf{11.00} $\pm$ 0.50 & 8" in first
    assert "c & 13.00 & 8" in first
    assert first.count(r"\textbf") == 1
    assert "other stride$^{a}$ & 5.00 & 8" in second
    assert "fewer$^{b}$ & 90.00 & 8" in third
    notes = text.partition(r"\end{tabular}")[2]
    assert r"$^{a}$ Does not compare with the first rows: stride\_real 1, not 3." in notes
    assert r"score fvd4\_4f, not fvd8\_4f; stride\_real 1, not 3." in notes
    assert r"$^{\dagger}$ Mean and standard deviation over sets" in notes
    caption = text.partition(r"\caption")[2].partition("\n")[0]
    assert r"network.weights\_sha256 abababab." in caption


def test_reconstructions_on_the_same_clips_become_one_result():
    def run(folder, frames=5, **metrics):
        protocol = {"folder": folder, "frames": frames, "content": "c"}
        methods = {name: {"sha256": str(psnr)} for name, psnr in metrics.items()}
        return {"protocol": protocol, "metrics": metrics, "methods": methods, "notes": ["n"]}

    given = [("a", run("val", ours=30, trilinear=20)), ("b", run("moved/val", ours=31))]
    first, other = joined_reconstructions([*given, ("c", run("val", frames=9, ours=32))])
    assert first["metrics"] == {"ours": 30, "trilinear": 20, "ours (b)": 31}
    assert first["methods"]["ours (b)"] == {"sha256": "31"}
    assert first["notes"] == ["n"]
    assert other["metrics"] == {"ours": 32}
