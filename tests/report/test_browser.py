"""The page in headless Chromium: it loads from one file, without a complaint, and is not blank."""

import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray
from playwright.sync_api import sync_playwright

from qdc.report.model import CompileReport
from qdc.report.page import render
from tests.report.test_page import HOSTILE, evaluated, layer

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr",
    # whatever the browser itself wants from the network finds no name
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
WIDTH, HEIGHT = 1280, 2400


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of the browser; where CI sets ``QDC_REQUIRE_CHROMIUM`` its absence is a failure."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is not None:
        return found
    reason = "no Chromium on the PATH (Debian: apt-get install chromium)"
    if os.environ.get("QDC_REQUIRE_CHROMIUM"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder that is served: its path, its address, and what was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, format: str, *arguments: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def browse(chromium: str, profile: Path, address: str, *options: str) -> tuple[str, list[str]]:
    """Open an address; return the DOM and what the console says."""
    found = subprocess.run(
        [chromium, *QUIET, f"--user-data-dir={profile}", *options, address],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return found.stdout, [line for line in found.stderr.splitlines() if "CONSOLE" in line]


def screenshot(chromium: str, folder: Path, page: Path, *options: str) -> NDArray[np.float64]:
    """Draw a file to pixels, ``f[height, width, 3]`` in 0..1."""
    picture = folder / "page.png"
    size = f"--window-size={WIDTH},{HEIGHT}"
    browse(chromium, folder / "profile", page.as_uri(), f"--screenshot={picture}", size, *options)
    return np.asarray(imread(picture), dtype=np.float64)[..., :3]


def test_it_loads_in_one_request_without_a_complaint(
    chromium: str, compiled: CompileReport, site: tuple[Path, str, list[str]]
) -> None:
    folder, address, asked = site
    hostile = compiled.model_copy(
        update={"remarks": (HOSTILE,), "evaluation": evaluated(compared=True)}
    )
    (folder / "report.html").write_text(render(hostile), encoding="utf-8")
    dom, console = browse(chromium, folder / "profile", f"{address}/report.html", "--dump-dom")
    assert asked == ["/report.html"]
    assert console == []
    assert all(layer.name in dom for layer in compiled.layers)
    assert dom.count("<svg") > 10
    assert "<script" not in dom


def test_the_check_above_sees_what_a_page_asks_for(
    chromium: str, site: tuple[Path, str, list[str]]
) -> None:
    folder, address, asked = site
    text = "<!DOCTYPE html><link rel=icon href=data:,><img src=a.png><script>missing()</script>"
    (folder / "page.html").write_text(text)
    _, console = browse(chromium, folder / "profile", f"{address}/page.html", "--dump-dom")
    assert sorted(set(asked)) == ["/a.png", "/page.html"]
    assert any("missing is not defined" in line for line in console)


def test_it_is_drawn_in_light_and_dark(
    chromium: str, compiled: CompileReport, tmp_path: Path
) -> None:
    assert compiled.report is not None
    page = Path(compiled.report)
    light = screenshot(chromium, tmp_path, page)
    dark = screenshot(chromium, tmp_path, page, "--blink-settings=preferredColorScheme=0")
    for picture in (light, dark):
        assert picture.shape == (HEIGHT, WIDTH, 3)
        flat = (picture * 255).astype(np.uint32)
        colors = np.unique(flat[..., 0] << 16 | flat[..., 1] << 8 | flat[..., 2])
        assert len(colors) > 100, "text and drawings have many shades"
        rows = picture.std(axis=(1, 2)) > 0.01
        assert rows.mean() > 0.5, "something stands on most lines"
        blue = (picture[..., 2] - picture[..., 0]) > 0.2
        assert blue.sum() > 2000, "the heat maps are drawn in the accent colour"
    assert np.median(light) > 0.8
    assert np.median(dark) < 0.2


def test_nothing_is_cut_off_and_cells_say_their_values(
    chromium: str, compiled: CompileReport, tmp_path: Path
) -> None:
    """On a screen and on a phone, with errors of which the axis has long numbers."""
    layers = tuple(
        layer(depth, kind, 3, 3e-5 * 40**place).model_copy(
            update={"block_errors": (1e-5, 2e-5, 3e-5)}
        )
        for place, kind in enumerate("ab")
        for depth in (0, 1)
    )
    report = compiled.model_copy(update={"layers": layers, "evaluation": evaluated(compared=True)})
    path = tmp_path / "report.html"
    path.write_text(render(report), encoding="utf-8")
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page()
        page.goto(path.as_uri())
        for width in (390, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.evaluate(CUT_OFF) == []
            assert page.evaluate(SCROLLED) == []
        assert "0.0001" in page.locator("#error .facets").first.inner_text()
        drawings = page.get_by_role("img")
        assert drawings.count() == page.locator("svg").count() == 8
        assert page.locator("svg > title + desc").count() == 8
        assert page.evaluate(TITLES) == [
            ["#bits", "depth 0, block 1: order 2"], ["#error", "depth 0, block 1: 2e-05"]
        ]  # fmt: skip
        browser.close()


CUT_OFF = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1
      || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  }).map(text => text.textContent);
})"""
"""Texts of drawings that stand out of them."""
SCROLLED = """[...document.querySelectorAll('.scroll:not(.long)')]
  .filter(table => table.scrollHeight > table.clientHeight + 1)
  .map(table => table.getAttribute('aria-label'))"""
"""Tables of which rows are out of sight, though they have no row for each layer."""
TITLES = """['#bits', '#error'].map(id => {
  const found = document.querySelector(id + ' .cells').ownerSVGElement;
  found.scrollIntoView({block: 'center', behavior: 'instant'});
  const box = found.querySelector('image').getBoundingClientRect();
  const hit = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 4);
  return [id, hit.querySelector('title').textContent];
})"""
"""What a mouse sees that rests on the first of two layers, in the middle of three blocks."""
