"""The page in headless Chromium: a person types, and watches tokens unmask."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from matplotlib.image import imread
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from qdc.cli.models import Opened
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from tests.report.test_browser import chromium
from tests.serve.conftest import Served

__all__ = ["chromium"]

PROMPT = "def read(path):"


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu"]
        found = driver.chromium.launch(executable_path=chromium, args=arguments)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, server: Served) -> Iterator[Page]:
    """The page, without a complaint, and without a request to anybody else."""
    complaints: list[str] = []
    asked: list[str] = []
    context = browser.new_context(viewport={"width": 900, "height": 700})
    found = context.new_page()
    found.on("console", lambda message: complaints.append(message.text))
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("request", lambda request: asked.append(request.url))
    found.goto(server.url)
    expect(found.locator("#name")).to_have_text(server.model)
    yield found
    # The browser itself says that a request was refused.
    assert [line for line in complaints if "status of 400" not in line] == []
    assert all(url.startswith(server.url) for url in asked if not url.startswith("data:"))
    context.close()


def test_tokens_unmask_while_one_watches(page: Page, opened: Opened) -> None:
    """By keyboard alone. The states that are shown are recorded by a script of the test."""
    page.evaluate(
        """() => {
          window.states = [];
          new MutationObserver(() => {
            const text = document.querySelector('.text');
            if (text) states.push([text.querySelectorAll('.veil').length, text.children.length]);
          }).observe(document.getElementById('log'), {childList: true, subtree: true});
        }"""
    )
    page.keyboard.type(PROMPT)
    page.locator("#length").fill("40")
    page.locator("#steps").fill("10")
    page.locator("#prompt").press("Enter")
    expect(page.locator(".mine")).to_have_text(PROMPT)
    expect(page.locator("#send")).to_be_enabled(timeout=30_000)
    options = DecodeOptions(length=40, steps=10)
    due = decode(opened.module, [opened.encode(PROMPT)], options, opened.decoding)
    assert page.locator(".text").text_content() == opened.decode(due.answers[0])
    veiled = [veils for veils, places in page.evaluate("states") if places == 40]
    assert len(set(veiled)) > 2, "it was shown several times on its way"
    assert veiled == sorted(veiled, reverse=True)
    assert veiled[0] > 0
    figures = page.locator(".figures").text_content() or ""
    assert "step 10 of 10 · 40 tokens" in figures
    assert "tokens/s" in figures
    expect(page.locator("#prompt")).to_be_focused()


def test_errors_are_shown(page: Page) -> None:
    page.locator("#more summary").click()
    page.locator("#cfg").fill("200")
    page.locator("#prompt").fill("<b>x</b>")
    page.locator("#prompt").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("cfg: input should be less than")
    expect(page.locator("#prompt")).to_have_value("<b>x</b>")
    assert page.locator("#log b").count() == 0
    page.locator("#cfg").fill("")
    page.locator("#length").fill("4")
    page.locator("#send").click()
    expect(page.locator(".figures").last).to_contain_text("4 tokens ·", timeout=30_000)


def test_escape_stops(page: Page) -> None:
    page.locator("#length").fill("240")
    page.locator("#prompt").fill("x")
    page.locator("#prompt").press("Enter")
    expect(page.locator(".veil").first).to_be_visible(timeout=30_000)
    page.keyboard.press("Escape")
    expect(page.locator(".figures")).to_contain_text("stopped")
    expect(page.locator("#send")).to_be_enabled()
    page.locator("#clear").click()
    expect(page.locator("#empty")).to_be_visible()
    assert page.locator("article").count() == 0


def test_chat_sends_what_was_said(page: Page) -> None:
    page.locator("#mode").select_option("chat")
    page.locator("#length").fill("4")
    bodies: list[list[str]] = []

    def note(request: Request) -> None:
        sent = request.post_data_json
        if sent is not None:
            bodies.append([message["role"] for message in sent["messages"]])

    page.on("request", note)
    for number in (1, 2):
        page.locator("#prompt").fill("import os")
        page.locator("#prompt").press("Enter")
        expect(page.locator(".figures")).to_have_count(number)
        expect(page.locator("#send")).to_be_enabled(timeout=30_000)
    assert bodies == [["user"], ["user", "assistant", "user"]]


def test_light_dark_and_narrow(page: Page, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    shades = []
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme in schemes:
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=folder / f"{scheme}.png")
        shades.append(float(np.median(imread(folder / f"{scheme}.png")[..., :3])))
    assert shades[0] > 0.8
    assert shades[1] < 0.2
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.locator("#send")).to_be_in_viewport()


def test_the_page_asks_for_a_key(browser: Browser, locked: Served) -> None:
    """By hand, wrong and right; then it is known, until the tab is closed; or by the address."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(locked.url)
    expect(page.locator("#key")).to_be_focused()
    expect(page.locator("#form")).to_be_hidden()
    assert page.get_by_role("alert").count() == 0
    for key in ("file", "of-a-file"):
        page.locator("#key").fill(key)
        page.locator("#key").press("Enter")
        if key == "file":
            expect(page.get_by_role("alert")).to_contain_text("not one of this server")
    expect(page.locator("#name")).to_have_text(locked.model)
    expect(page.locator("#entry")).to_be_hidden()
    assert page.get_by_role("alert").count() == 0
    page.reload()
    expect(page.locator("#name")).to_have_text(locked.model)
    page.locator("#length").fill("4")
    page.locator("#prompt").fill("import os")
    page.locator("#prompt").press("Enter")
    expect(page.locator(".figures")).to_contain_text("4 tokens ·", timeout=30_000)
    context.close()
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{locked.url}/#key=of-a-file")
    expect(page.locator("#name")).to_have_text(locked.model)
    assert page.url == f"{locked.url}/", "the key does not stay in the address"
    assert page.locator("#strategy option").count() > 3
    context.close()
