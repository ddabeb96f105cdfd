"""Tables in every form, and the published numbers in them."""

import csv
import io

import pytest
import torch

from eval.metrics.reconstruction import ssim_by_position
from eval.published.reconstructions import POSITIONS, PUBLISHED, published_rows
from eval.report.items import Column, PublishedRow, Table
from eval.report.tables import to_csv, to_latex, to_markdown, to_text

TABLE = Table(
    title="Quality",
    columns=["method", Column(name="PSNR", unit="dB", decimals=2), Column(name="SSIM", decimals=3)],
    rows=[["ours_1 & co", 30.126, None], ["a|b", 20, 0.5]],
    reference_rows=[PublishedRow(cells=["IV-VAE", 39.02, 0.9685], source="paper, Table 1")],
    notes=["100 % ours"],
)


def test_table_5_s_margins_follow_from_its_cells():
    rows = [row for row in PUBLISHED if "margin" in row.values]
    assert len(rows) == 4
    for row in rows:
        cells = torch.tensor([[0.0, *(row.values[name] for name in POSITIONS[:-1])]])
        margin = ssim_by_position(cells).margin
        assert margin == pytest.approx(row.values["margin"], abs=1e-6)


def test_published_rows_name_their_table_and_setting():
    rows = published_rows(["psnr", "missing"])
    assert {row.source for row in rows} > {"paper, Table 1", "supplement, Table 1"}
    assert (rows[0].cells, rows[0].setting) == (["IV-VAE (Z=16)", 39.02, None], "Kinetics-600")
    assert rows[0].labeled_cells == ["IV-VAE (Z=16) (Kinetics-600)", 39.02, None]
    assert all(row.cells[1] is not None for row in rows)
    both = {row.source for row in published_rows(["psnr", "macs"]) if None not in row.cells}
    assert both == {"supplement, Table 3"}


def test_text_aligns_rows_and_shows_published_ones_in_gray():
    lines = to_text(TABLE, color=True).splitlines()
    assert lines[2].split() == ["ours_1", "&", "co", "30.13", "–", "measured", "here"]
    assert lines[4].startswith("\033[90mIV-VAE")
    assert lines[4].endswith("paper, Table 1\033[0m")
    plain = to_text(TABLE).splitlines()
    assert "\033" not in "".join(plain)
    assert plain[2].index("30.13") == plain[3].index("20.00") == plain[4].index("39.02")


def test_csv_keeps_all_digits_and_says_what_was_measured():
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows[0] == ["method", "PSNR, dB", "SSIM", "source"]
    assert rows[1] == ["ours_1 & co", "30.126", "", "measured here"]
    assert rows[3] == ["IV-VAE", "39.02", "0.9685", "paper, Table 1"]


def test_markdown_and_latex_escape_and_mark():
    markdown = to_markdown(TABLE).splitlines()
    assert markdown[2:4] == ["| method | PSNR, dB | SSIM | source |", "| --- | ---: | ---: | --- |"]
    assert markdown[5].startswith("| a\\|b | 20.00 |")
    assert '<span style="color:gray">*39.02*</span>' in markdown[6]
    latex = to_latex(TABLE)
    assert r"ours\_1 \& co & 30.13 & -- & measured here \\" in latex
    assert r"\color{gray}IV-VAE & \color{gray}39.02" in latex
    assert r"100 \% ours" in latex
