"""Opens pages that the project makes in a real browser and fails on what a reader would suffer."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

needs_browser = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium: install it (apt-get install chromium) or set CHROMIUM to its path",
)


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser for several pages; starting one takes longer than most tests of a page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def open_page(
    path: Path,
    *,
    width: int = 1280,
    height: int = 900,
    browser: Browser | None = None,
    **options: Any,
) -> Iterator[Page]:
    """Show an HTML file; on leaving, fail on script errors, console errors and outside requests.

    Args:
        path: the file; it is opened by its file:// address.
        width, height: of the window, CSS pixels.
        browser: from `launched`; by default one for this page alone.
        options: of Playwright's `new_context`, such as `reduced_motion="reduce"`.
    """
    troubles: list[str] = []
    address = path.resolve().as_uri()
    with nullcontext(browser) if browser else launched() as opened:
        context = opened.new_context(viewport={"width": width, "height": height}, **options)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(f"script error: {error}"))
        page.on(
            "console",
            lambda m: troubles.append(f"{m.type}: {m.text}") if m.type in LOUD else None,
        )
        page.on(
            "request", lambda r: None if _inside(r.url, address) else troubles.append(r.url[:200])
        )
        page.goto(address)
        yield page
        context.close()
    assert not troubles, troubles


LOUD = ("error", "warning")


def _inside(url: str, address: str) -> bool:
    return url.partition("#")[0] == address or url.startswith(("data:", "blob:"))


def wait_until(page: Page, expression: str, argument: Any = None, seconds: float = 5.0) -> None:
    """Wait for a JavaScript expression, or a function of `argument`, to hold.

    Playwright's own `wait_for_function` needs `eval`, which the policy of our pages forbids.
    """
    end = time.monotonic() + seconds
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, f"after {seconds} s still false: {expression}"
        page.wait_for_timeout(20)


def overflow(page: Page) -> int:
    """CSS pixels by which the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def check_videos_play(page: Page) -> int:
    """Every video has decoded a frame, and its time advances once it is played; their number."""
    return page.evaluate("""async () => {
        const videos = [...document.querySelectorAll('video')];
        for (const video of videos) {
            const wait = async (what, done) => {
                for (let i = 0; i < 200; i++) {
                    if (done()) return;
                    await new Promise(resolve => setTimeout(resolve, 25));
                }
                throw new Error(`${video.getAttribute('aria-label')}: ${what}`);
            };
            await wait('no frame was decoded', () => video.readyState >= 2 && video.videoWidth > 0);
            (video.closest('.player') || video).scrollIntoView();
            await video.play();
            const start = video.currentTime;
            await wait('its time does not advance', () => video.currentTime !== start);
        }
        return videos.length;
    }""")
