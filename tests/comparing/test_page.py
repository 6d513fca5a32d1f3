"""The page: in a real browser at two widths, and what a stranger's names can do to it."""

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, sync_playwright

from qdc.comparing.figures import Point, front, layer_map, loss_by_bits, ordered_layers
from qdc.comparing.labels import shortened, spread_labels
from qdc.comparing.page import render
from tests.comparing.examples import KINDS, comparison, failed_row, method_row, variation
from tests.report.test_browser import CUT_OFF, chromium

__all__ = ["chromium"]

HOSTILE = "<script>alert(1)</script>"
MANY = 32


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many methods, some of nearly one loss, one with a long name, and one that has failed."""
    rows = [
        method_row(f"method-{number} compensation=exact geometry=clean"[: 12 + number],
                   0.05 * 1.02**number, 2 + number % 7 / 5)
        for number in range(MANY)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("page") / "compare.html"
    compared = comparison(
        *rows, method_row(HOSTILE, 0.3, 3.0), failed_row("broken", HOSTILE),
        variations=(variation("method-0", -0.1),),
    )  # fmt: skip
    path.write_text(render(compared), encoding="utf-8")
    return path


def test_it_opens_in_a_browser_and_labels_do_not_overlap(chromium: str, page: Path) -> None:
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=chromium, args=arguments)
        for width in (1280, 390):
            _look(browser, page, width)
        browser.close()


def _look(browser: Browser, page: Path, width: int) -> None:
    complaints, asked = list[str](), list[str]()
    shown = browser.new_page(viewport={"width": width, "height": 900})
    shown.on("console", lambda message: complaints.append(message.text))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(page.as_uri())
    assert asked == [page.as_uri()]
    assert complaints == []
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    assert HOSTILE in shown.inner_text("#table")
    plots = shown.locator("section svg")
    assert plots.count() == 4, "three ratios and the layers"
    assert shown.evaluate(CUT_OFF) == []
    titles = shown.locator("#layers .cells title").all_text_contents()
    assert len(titles) == (MANY + 1) * 6 * len(KINDS)
    assert titles[0].startswith("method-0 com, blocks.0.q_proj: error 0.0")
    assert titles[-1].startswith(f"{HOSTILE}, blocks.5.ff_out: error 0.")
    boxes = shown.evaluate(
        "[...document.querySelector('#plot svg').querySelectorAll('text')].map(t => {"
        "const b = t.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]})"
    )
    drawn = np.array(boxes)
    assert len(drawn) > MANY
    frame = shown.evaluate(
        "(b => [b.left, b.top, b.right, b.bottom])"
        "(document.querySelector('#plot svg').getBoundingClientRect())"
    )
    assert (drawn[:, :2] >= np.array(frame[:2]) - 1).all()
    assert (drawn[:, 2:] <= np.array(frame[2:]) + 1).all(), "no name is cut off"
    # Lines of text may touch, as they do in a paragraph, and must not stand on each other.
    for number, (left, top, right, bottom) in enumerate(drawn):
        others = drawn[number + 1 :]
        wide = np.minimum(right, others[:, 2]) - np.maximum(left, others[:, 0])
        high = np.minimum(bottom, others[:, 3]) - np.maximum(top, others[:, 1])
        assert not ((wide > 1) & (high > 3)).any()
    shown.close()


def test_front_is_what_no_method_beats_in_both() -> None:
    points = [Point(name, bits, rise, None, None) for name, bits, rise in (
        ("a", 2.0, 0.3), ("b", 2.2, 0.1), ("c", 2.2, 0.2), ("d", 2.5, 0.1), ("e", 3.0, 0.05),
        ("f", 1.5, 0.9),
    )]  # fmt: skip
    assert [point.name for point in front(points)] == ["f", "a", "b", "e"]


def test_rises_below_zero_are_drawn_on_a_linear_axis() -> None:
    points = [
        Point("better", 2.0, -0.1, (-0.2, 0.0), None), Point("worse", 2.5, 0.1, None, 0.01)
    ]  # fmt: skip
    drawing = loss_by_bits(points, "rise")
    assert "-0.1000  better" in drawing.replace("\N{MINUS SIGN}", "-")
    assert loss_by_bits(points[:1], "rise").startswith("<svg")


def test_map_orders_layers_by_kind_and_leaves_gaps() -> None:
    errors = {
        "a": {"blocks.0.q": 0.1, "blocks.0.k": 0.2, "blocks.1.q": 0.3},
        "b": {"blocks.0.q": 0.1},
        "none": {},
    }
    assert ordered_layers(errors) == ["blocks.0.q", "blocks.1.q", "blocks.0.k"]
    drawn = layer_map(errors)
    assert drawn is not None
    assert drawn[1:] == (0.1, 0.3)
    assert layer_map({"a": {"blocks.0.q": 0.0}}) is None


def test_labels_stay_apart_in_order_and_inside() -> None:
    placed = spread_labels([0.5, 0.5, 0.5, 0.0], 0.2, 0.0, 1.0)
    assert placed == pytest.approx([0.3, 0.5, 0.7, 0.0])
    # A block at the edge stays inside, and pushes the next one on.
    assert spread_labels([1.2, 1.0, 0.9], 0.2, 0.0, 1.0) == pytest.approx([1.0, 0.8, 0.6])
    assert spread_labels([0.0, 0.0, 0.35], 0.2, 0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4])
    assert spread_labels([], 0.2) == []
    assert shortened("abcdef", 4) == "abc…"


def test_a_comparison_in_which_all_failed_has_a_page() -> None:
    page = render(comparison(failed_row("a", "no"), original=()))
    assert "a failed" in page
    assert "<svg" not in page
