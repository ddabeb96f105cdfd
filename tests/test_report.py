"""The web page: what it says, what it refuses, and that it works in a browser."""

import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from data.video.encode import write_video
from eval.clips.labels import write_labels
from eval.report import drawing as figures
from eval.report.items import Column, Comparison, Curve, Gallery, PublishedRow, Section, Table
from eval.report.page import render_page
from eval.results.result_sections import samples_gallery
from tests.builders.browser import (
    check_videos_play,
    launched,
    needs_browser,
    open_page,
    overflow,
    wait_until,
)

FRAMES = 9
HOSTILE = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>"


def gray_steps(offset: int = 0, size: int = 16) -> np.ndarray:
    """A clip whose frame i is plain gray 20 i + 40 + offset: a frame tells its number."""
    levels = 20 * np.arange(FRAMES) + 40 + offset
    return np.broadcast_to(levels[:, None, None, None], (FRAMES, size, size, 3)).astype(np.uint8)


def table(**changes) -> Table:
    values = {
        "title": "Scores",
        "columns": ["Method", Column(name="PSNR", unit="dB", better="high")],
        "rows": [["ours", 31.25], ["pooling", 24.5]],
    }
    return Table(**values | changes)


def curve(**changes) -> Curve:
    return Curve(
        **{
            "title": "Loss",
            "x_label": "step",
            "y_label": "loss",
            "series": {"train": ([0, 1, 2], [1.0, 0.5, 0.25])},
        }
        | changes
    )


def comparison(**changes) -> Comparison:
    clips = {"original": gray_steps(), "vae": gray_steps(8), "pooling": gray_steps(16)}
    values = {"title": "Side by side", "clips": clips, "errors": True}
    return Comparison(**values | changes)


def gallery(**changes) -> Gallery:
    values = {"title": "Samples", "clips": {"disc": [gray_steps(i) for i in range(3)]}}
    return Gallery(**values | changes)


def page_of(*items, **changes) -> str:
    section = Section(title="Results", items=items or [table()])
    return render_page(
        **{"title": "Report", "sections": [section], "provenance": {"Command": "x"}} | changes
    )


class Cells(HTMLParser):
    """The text of a page's table rows, and the addresses that a page refers to."""

    def __init__(self, page: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.marked: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._inside = False
        self._best = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.addresses += [
            values[key] for key in ("src", "href", "srcset", "data") if key in values
        ]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside, self._best = True, "best" in (values.get("class") or "")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            if self._best:
                self.marked.append(self.rows[-1][-1])
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        ("4 × 8", "4 × 8"),
        (1234567, "1,234,567"),
        (31.2412, "31.24"),
        (0.968512, "0.9685"),
        (12345.678, "12,346"),
        (412.0, "412"),
        (-0.5, "−0.5"),
        (3.2e-5, "3.20×10⁻⁵"),
        (0.0, "0"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (np.float32(0.25), "0.25"),
        (np.int64(2048), "2,048"),
    ],
)
def test_numbers_read_well(value, text):
    assert figures.format_number(value) == text


def test_a_column_shares_its_decimals_unless_that_hides_a_value():
    assert figures.column_decimals([31.2412, 19.3, None, "–"]) == 2
    assert figures.column_decimals([256, 512]) is None
    assert figures.column_decimals([2.4, 1.1]) == 1
    assert figures.column_decimals([1000.5, 0.0123]) is None
    assert figures.column_decimals([math.inf, math.nan]) is None


def test_names_are_text_never_markup():
    page = page_of(
        table(title=HOSTILE, columns=[HOSTILE, HOSTILE], rows=[[HOSTILE, 1]], notes=[HOSTILE]),
        curve(title=HOSTILE, x_label=HOSTILE, series={HOSTILE: ([0, 1], [0, 1])}),
        comparison(title=HOSTILE, clips={HOSTILE: gray_steps(), "b": gray_steps()}),
        gallery(title=HOSTILE, clips={HOSTILE: [gray_steps()]}),
        title=HOSTILE,
        summary=[HOSTILE],
        facts={HOSTILE: (HOSTILE, HOSTILE)},
        provenance={HOSTILE: HOSTILE},
    )
    tags = Cells(page).tags
    assert "<script>alert" not in page
    assert tags.count("script") == 1
    assert "img" not in tags


def test_nothing_on_the_page_refers_outside():
    page = page_of(table(), curve(), comparison(), gallery())
    addresses = Cells(page).addresses
    assert sum(address.startswith("data:video/mp4;base64,") for address in addresses) == 2
    assert [a for a in addresses if not a.startswith(("data:", "#"))] == []
    assert not re.search(r"url\(|@import|https?://", page)
    assert "default-src 'none'" in page


def test_the_opening_stands_before_figures_and_names_its_columns():
    opening = gallery(title="Pictures", headings=["real", "real", "generated"])
    facts = {"PSNR": ("31.25", "")}
    page = page_of(opening=opening, facts=facts, summary=["First.", "Second."])
    parts = ["First.", "Pictures", "<video", "Second.", "PSNR", "Scores"]
    places = [page.index(part, page.index("<body>")) for part in parts]
    assert places == sorted(places)
    spans = re.findall(r'<span style="flex-grow:(\d)">(\w+)</span>', page)
    assert spans == [("2", "real"), ("1", "generated")]
    assert re.search(r'width="392" height="128"', page)  # three clips of 128 pixels side by side


def write_samples(folder: Path, levels: dict[str, list[int]]) -> None:
    """Plain gray clips of classes, as `scripts/sample.py` leaves them."""
    labels: dict[str, int] = {}
    for number, of_class in enumerate(levels.values()):
        for level in of_class:
            file = f"clip-{len(labels):06d}.mkv"
            frames = np.full((4, 16, 16, 3), level, np.uint8)
            write_video(folder / file, frames, 8, codec="ffv1")
            labels[file] = number
    write_labels(folder, labels, list(levels))


def test_real_clips_stand_beside_the_samples_of_their_class(tmp_path):
    write_samples(tmp_path / "real", {"disc": [10, 10, 10], "box": [20]})
    write_samples(tmp_path / "made", {"disc": [110], "box": [120, 125, 130]})
    shown = samples_gallery("x", tmp_path / "made", str(tmp_path / "real"))
    assert list(shown.headings) == ["real", "real", "generated", "generated"]
    found = {name: [int(c.mean()) for c in clips] for name, clips in shown.clips.items()}
    assert found == {"disc": [10, 10, 110, 110], "box": [20, 20, 120, 125]}
    alone = samples_gallery("x", tmp_path / "made").clips
    assert [len(clips) for clips in alone.values()] == [1, 3]
    write_samples(tmp_path / "fewer", {"disc": [10]})
    with pytest.raises(ValueError, match="no clip of class box"):
        samples_gallery("x", tmp_path / "made", str(tmp_path / "fewer"))
    with pytest.raises(ValueError, match="no labels"):
        samples_gallery("x", tmp_path / "made", str(tmp_path))


def test_published_rows_are_marked_and_never_the_best():
    published = [
        PublishedRow(cells=["equal", 31.25], source="elsewhere"),
        PublishedRow(cells=["IV-VAE", 39.02], source="paper, Table 1"),
    ]
    cells = Cells(page_of(table(reference_rows=published)))
    assert cells.marked == ["31.25 (best measured)"]
    assert cells.rows[-1] == ["IV-VAE (published)", "39.02"]
    assert cells.rows[-2] == ["published paper, Table 1"]  # each source has a heading
    assert "not measured here" in cells.rows[-4][0]
    assert cells.rows[-4][0].endswith("published elsewhere")


def test_baselines_that_compress_nothing_are_never_the_best():
    rows = [["ours", 30.0], ["trilinear", 20.0], ["last_frames", 52.0]]
    psnr = Column(name="PSNR", better="high", decimals=2)
    shown = table(columns=["method", psnr], rows=rows, unranked=["last_frames"])
    cells = Cells(page_of(shown))
    assert cells.marked == ["30.00 (best measured)"]


def test_the_best_follows_the_direction_and_needs_a_rival():
    low = Column(name="LPIPS", better="low")
    rows = [["a", 0.2], ["b", 0.1], ["c", math.nan], ["d", None], ["e", 0.1]]
    page = Cells(page_of(table(columns=["Method", low], rows=rows)))
    assert page.marked == ["0.1 (best measured)"] * 2
    assert [row[1] for row in page.rows[3:5]] == ["NaN", "–"]
    alone = Cells(page_of(table(columns=["Method", low], rows=rows[3:])))
    assert alone.marked == []


def test_equal_content_gives_equal_pages():
    assert page_of(comparison(), gallery()) == page_of(comparison(), gallery())


def test_gaps_break_the_line_and_are_counted():
    ys = [1.0, math.nan, 0.5, 0.25, 0.0]
    page = page_of(curve(series={"train": (range(5), ys)}, log_y=True))
    assert "train: 2 of 5 values are left out" in page
    path = re.search(r'class="line s0" d="([^"]+)"', page)
    assert path
    assert re.sub(r"[-0-9. ]+", "", path[1]) == "MhMhL"  # a lone point, then a line of two


def test_a_run_that_ended_in_nan_says_so():
    page = page_of(curve(series={"train": ([0, 1], [1.0, math.nan])}))
    assert '<span class="last">last NaN</span>' in page


def test_anchors_are_unique_and_every_link_has_its_target():
    titles = ["Content", "Loss", "Loss", "How this page was made", "损失"]
    page = page_of(*[curve(title=title) for title in titles])
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(names)) == len(names)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(names)


def test_axes_place_ticks_where_their_labels_say():
    linear = figures.Axis.around(np.array([0.0, 3000.0]), log=False, margin=0.0)
    assert [label for _, label in linear.ticks()][:3] == ["0", "500", "1,000"]
    log = figures.Axis.around(np.array([0.01, 10.0]), log=True, margin=0.0)
    ticks = {label: place for place, label in log.ticks()}
    assert (ticks["0.1"], ticks["1"]) == pytest.approx((1 / 3, 2 / 3))
    assert figures.Axis.around(np.array([5.0]), log=False, margin=0.05).ticks()


def test_a_thinned_line_keeps_ends_extremes_and_gaps():
    xs = np.arange(100_000, dtype=np.float64)
    ys = np.sin(xs / 3000)
    ys[54_321], ys[70_000:71_000] = 9.0, math.nan
    few_x, few_y = figures.thin(xs, ys)
    assert len(few_x) <= 1000 + 1
    assert (few_x[0], few_x[-1]) == (0, 99_999)
    assert few_y[few_x == 54_321] == 9.0
    assert np.isnan(few_y).any()
    assert np.nanmin(few_y) == np.nanmin(ys)


def test_error_maps_and_psnr_have_their_closed_forms():
    reference = gray_steps()
    error = figures.absolute_error(gray_steps(8), reference)
    assert (error == 8).all()
    assert figures.automatic_gain([error]) == 16  # 8 * 16 <= 255 < 8 * 32
    assert figures.automatic_gain([np.zeros((1, 2, 2))]) == 32
    brightest = figures.paint_error(np.full((1, 1, 1), 255.0), 1.0)
    assert (figures.paint_error(error, 32.0)[0, 0, 0] == brightest[0, 0, 0]).all()
    closed_form = 20 * math.log10(255 / 8)
    assert figures.psnr_per_frame(gray_steps(8), reference) == pytest.approx([closed_form] * FRAMES)
    assert figures.psnr_per_frame(reference, reference) == [math.inf] * FRAMES


def test_a_sheet_holds_every_clip_enlarged_where_it_says():
    clips = [gray_steps(i, size=15) for i in range(5)]
    sheet = figures.Sheet.layout(clips, target=32, gap=4)
    frames = list(sheet.frames(clips))
    assert (sheet.factor, len(frames), frames[0].shape) == (2, FRAMES, (*sheet.size, 3))
    height, width = sheet.clip_size
    for index, clip in enumerate(clips):
        top, left = sheet.corner(index)
        part = frames[3][top : top + height, left : left + width]
        assert (part[::2, ::2] == clip[3]).all()
        assert (part[1::2, 1::2] == clip[3]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: page_of(sections=[]), "no sections"),
        (lambda: page_of(title=" "), "title is empty"),
        (lambda: Section(title="Empty", items=[]), "section 'Empty': nothing in it"),
        (lambda: table(rows=[]), "at least one column and one row"),
        (lambda: table(rows=[["a", 1, 2]]), "row 1 has 3 cells for 2 columns"),
        (
            lambda: table(reference_rows=[PublishedRow(cells=["a"], source="s")]),
            "row 3 has 1 cells for 2 columns",
        ),
        (lambda: curve(series={}), "no series"),
        (lambda: curve(series={"a": ([0, 1], [1])}), "of one length"),
        (lambda: curve(series={"a": ([1, 0], [1, 1])}), "ascending"),
        (lambda: curve(series={"a": ([0, 1], [math.nan] * 2)}), "none of its 2 values"),
        (lambda: curve(series={"a": ([0, 1], [0, -1])}, log_y=True), "on a log axis"),
        (lambda: curve(series={"a": ([], [])}), "none of its 0 values"),
        (lambda: comparison(clips={}), "no clips"),
        (
            lambda: comparison(clips={"a": gray_steps(), "b": gray_steps(size=8)}),
            r"clip 'b' has shape \(9, 8, 8, 3\), but 'a' has \(9, 16, 16, 3\)",
        ),
        (lambda: comparison(scores={"PSNR": math.inf}), "score 'PSNR' is inf"),
        (lambda: gallery(clips={}), "no classes"),
        (lambda: gallery(clips={"disc": []}), "class 'disc': no clips"),
        (lambda: gallery(clips={"disc": [gray_steps(), gray_steps(size=8)]}), "clip '2'"),
    ],
)
def test_bad_content_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


STEPS = {
    "original": gray_steps(),
    "vae": gray_steps(8),
    "pooling": (gray_steps(16) * np.array([1.0, 0.6, 0.1])).astype(np.uint8),
}
SHOWS = """expected => expected.every((color, i) => {
    const canvas = document.querySelectorAll('.player .stack figure:first-child canvas')[i];
    const probe = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
    probe.drawImage(canvas, canvas.width / 2, canvas.height / 2, 1, 1, 0, 0, 1, 1);
    const shown = probe.getImageData(0, 0, 1, 1).data;
    const rounding = [2, 2, 8];  // browsers convert to RGB coarsely, above all blue
    return color.every((level, c) => Math.abs(shown[c] - level) <= rounding[c]);
})"""
WIPE_SHOWS = """expected => {
    const probe = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
    probe.drawImage(document.querySelector('.wipe-canvas'), 100, 100, 1, 1, 0, 0, 1, 1);
    const shown = probe.getImageData(0, 0, 1, 1).data;
    return expected.every((level, c) => Math.abs(shown[c] - level) <= 2);
}"""
PLAYING = "!document.querySelector('.player video').paused"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as opened:
        yield opened


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    rows = [[f"row {number:02d}", float(number)] for number in range(12)]
    published = PublishedRow(cells=["IV-VAE", 5.5], source="paper, Table 1")
    rows.append(["x" * 90, None])
    wide = [f"a column with a long heading {n}" for n in range(8)]
    scores = ({"PSNR": 31.0, "SSIM": 0.9}, {"PSNR": 20.5, "SSIM": 0.95})
    scenes = [
        comparison(title=f"Scene {i}", scores=values, errors=False)
        for i, values in enumerate(scores)
    ]
    shown = (
        table(rows=rows, reference_rows=[published]),
        table(title="Wide", columns=wide, rows=[[1.5] * 8]),
        curve(),
        comparison(clips=STEPS),
        gallery(clips={name: [gray_steps()] * 3 for name in ("disc", "box", "w" * 60)}),
    )
    page = page_of(
        sections=[Section(title="Results", items=shown), Section(title="S", items=scenes)],
        summary=["A summary."],
        facts={f"PSNR {i}": ("31.25 dB", "held out") for i in range(6)},
        provenance={"Command": "make demo", "Hash": "0123456789abcdef" * 8},
    )
    path.write_text(page, encoding="utf-8")
    return path


@needs_browser
def test_the_comparison_plays_in_step_by_mouse_and_keyboard(browser, page_file):
    with open_page(page_file, browser=browser) as page:
        assert check_videos_play(page) == 6
        player = page.locator(".player").first
        video = player.locator("video")
        paused = "video => video.paused"
        scrubber = player.locator(".scrubber")
        for frame in (5, 0, FRAMES - 1, 3):
            scrubber.fill(str(frame))
            expected = [clip[frame, 0, 0].tolist() for clip in STEPS.values()]
            wait_until(page, SHOWS, expected)
            assert player.locator(".frame").inner_text() == f"frame {frame + 1} / {FRAMES}"
            assert video.evaluate(paused)
        player.focus()
        page.keyboard.press("ArrowRight")
        wait_until(page, SHOWS, [STEPS["original"][4, 0, 0].tolist()])
        for playing in (True, False, True):
            page.keyboard.press(" ")
            wait_until(page, PLAYING if playing else f"!({PLAYING})")
        player.locator(".play").click()
        wait_until(page, f"!({PLAYING})")
        assert player.locator(".psnr b").first.inner_text() == "30.1"
        page.locator(".motion").click()
        wait_until(page, "[...document.querySelectorAll('video')].every(v => v.paused)")
        player.locator(".wipe summary").click()
        scrubber.fill("4")
        for edge, shown in ((0, "vae"), (100, "original")):
            player.locator(".wipe-place").fill(str(edge))
            wait_until(page, WIPE_SHOWS, STEPS[shown][4, 0, 0].tolist())


@needs_browser
def test_tables_sort_and_filter_and_curves_read_out_values(browser, page_file):
    with open_page(page_file, browser=browser) as page:
        box = page.locator(".item.table").first
        names = "rows => rows.filter(r => !r.hidden).map(r => r.cells[0].innerText.slice(0, 6))"
        rows = box.locator("tbody tr:not(.group)")
        box.locator(".sort").nth(1).click()
        assert rows.evaluate_all(names)[:2] == ["row 11", "row 10"]
        assert rows.evaluate_all(names)[-2:] == ["xxxxxx", "IV-VAE"]
        box.locator(".filter").fill("row 07")
        assert rows.evaluate_all(names) == ["row 07"]
        for wanted, left in (
            ("psnr > 9", ["row 11", "row 10"]),
            ("psnr>=10, row 1", ["row 11", "row 10"]),
            ("PSNR < 1.5, row", ["row 01", "row 00"]),
            ("iv-vae", ["IV-VAE"]),
        ):
            box.locator(".filter").fill(wanted)
            assert rows.evaluate_all(names) == left
        box.locator(".filter").fill("nothing like it")
        assert box.locator(".nothing").is_visible()
        assert box.locator(".group").is_hidden()
        box.locator(".filter").fill("")
        box.locator(".with-published").focus()
        page.keyboard.press(" ")
        assert "IV-VAE" not in rows.evaluate_all(names)

        wide = page.locator(".item.table").nth(1)
        wide.locator(".metrics summary").click()
        wide.get_by_label("a column with a long heading 3").uncheck()
        shown = "cells => cells.filter(c => !c.hidden).length"
        assert wide.locator("thead th").evaluate_all(shown) == 7
        assert wide.locator("tbody tr > *").evaluate_all(shown) == 7

        page.locator(".plot").focus()
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        assert page.locator(".tip").inner_text().split() == ["step", "1", "train", "0.5"]
        page.keyboard.press("Escape")
        assert page.locator(".tip").is_hidden()


@needs_browser
def test_clips_are_ordered_and_chosen_by_a_metric(browser, page_file):
    with open_page(page_file, browser=browser) as page:
        tools = page.locator(".clip-tools")
        scenes = page.locator("article[data-scores]")
        titles = "all => all.filter(a => !a.hidden).map(a => a.querySelector('h3').innerText)"
        assert scenes.evaluate_all(titles) == ["Scene 0", "Scene 1"]
        tools.locator(".by").select_option("PSNR")
        assert scenes.evaluate_all(titles) == ["Scene 1", "Scene 0"]
        tools.locator(".order").select_option("highest first")
        assert scenes.evaluate_all(titles) == ["Scene 0", "Scene 1"]
        tools.locator(".most").fill("25")
        assert scenes.evaluate_all(titles) == ["Scene 1"]
        assert tools.locator(".count").inner_text() == "1 of 2 clips"
        tools.locator(".by").select_option("SSIM")
        tools.locator(".least").fill("0.92")
        assert scenes.evaluate_all(titles) == ["Scene 1"]
        scenes.locator("visible=true").first.scroll_into_view_if_needed()
        wait_until(page, "[...document.querySelectorAll('video')].some(v => !v.paused)")


@needs_browser
def test_a_phone_shows_the_page_without_sideways_scrolling_and_calm_readers_no_motion(
    browser, page_file
):
    with open_page(
        page_file, browser=browser, width=390, height=844, reduced_motion="reduce"
    ) as page:
        assert overflow(page) == 0
        page.locator(".player").first.scroll_into_view_if_needed()
        page.wait_for_timeout(300)
        assert page.locator("video").evaluate_all("videos => videos.every(v => v.paused)")
        assert page.locator(".player .play").first.get_attribute("aria-label") == "Play"
        page.locator(".wipe summary").first.click()
        page.locator(".metrics summary").first.click()
        page.locator(".plot").first.focus()
        page.keyboard.press("ArrowRight")
        assert overflow(page) == 0
