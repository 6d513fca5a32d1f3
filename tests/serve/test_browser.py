"""The page in headless Chromium: a person types, and watches tokens unmask."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
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
    context = browser.new_context(
        viewport={"width": 900, "height": 700},
        permissions=["clipboard-read", "clipboard-write"],
    )
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
    long = "<b>x</b>" * 60
    page.locator("#prompt").fill(long)
    page.locator("#prompt").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("the server takes 256 in all")
    expect(page.locator("#prompt")).to_have_value(long)
    assert page.locator("#log b").count() == 0
    page.locator("#prompt").fill("x")
    page.locator("#length").fill("4")
    page.locator("#more summary").click()
    page.locator("#cfg").fill("200")
    page.locator("#more summary").click()
    page.locator("#send").click()
    expect(page.locator("#cfg")).to_be_focused()
    assert page.locator("#cfg").evaluate("field => field.validity.rangeOverflow")
    assert page.locator("#cfg").get_attribute("title") == "0 to 100"
    page.locator("#cfg").fill("")
    page.locator("#send").click()
    expect(page.locator(".figures").last).to_contain_text("4 tokens ·", timeout=30_000)


def test_gaps_are_filled_in_place_and_outlive_a_reload(page: Page, server: Served) -> None:
    page.locator("#mode").select_option("fill")
    page.locator("#strategy").select_option("entropy")
    expect(page.locator("#about")).to_have_text("Places of the least entropy.")
    page.locator("#gap").fill("2")
    page.locator("#prompt").fill("<i>no gap</i>")
    page.locator("#prompt").press("Enter")
    assert page.locator("article").count() == 0
    given = "<i>a</i> = ___\nb = _____;"
    page.locator("#prompt").fill(given)
    page.locator("#prompt").press("Enter")
    expect(page.locator(".figures")).to_contain_text("4 tokens ·", timeout=30_000)
    expect(page.locator("#send")).to_be_enabled(timeout=30_000)
    body = {"text": given, "gap_tokens": 2, "strategy": "entropy"}
    answer = httpx.post(f"{server.url}/fill", json=body).text
    due = json.loads(answer.rstrip().rpartition("\n")[2].removeprefix("data: "))["text"]
    expect(page.locator("mark")).to_have_count(2)
    assert page.locator(".text").text_content() == due
    page.get_by_role("button", name="Copy the answer").click()
    expect(page.locator("#status")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == due
    page.locator("#prompt").fill("not sent")
    page.reload()
    expect(page.locator("mark")).to_have_count(2)
    assert page.locator(".text").text_content() == due
    assert page.locator("#log i").count() == 0
    assert page.evaluate("[mode, strategy, gap].map(field => field.value)") == [
        "fill", "entropy", "2"
    ]  # fmt: skip
    expect(page.locator("#prompt")).to_have_value("not sent")
    page.locator("#clear").click()
    assert "mark" not in page.evaluate("sessionStorage['qdc conversation']")
    page.locator("#undo button").click()
    assert page.locator(".text").text_content() == due


def test_turns_are_edited_and_written_again(page: Page) -> None:
    page.locator("#mode").select_option("chat")
    expect(page.locator("#note")).to_contain_text("This model has no chat template.")
    page.locator("#length").fill("3")
    sent: list[Any] = []
    page.on("request", lambda request: sent.append(request.post_data_json))

    def done(turns: int) -> list[str]:
        expect(page.locator(".answer")).to_have_count(turns)
        expect(page.locator("#send")).to_be_enabled(timeout=30_000)
        return page.locator(".mine").all_inner_texts()

    for number, text in enumerate(("one", "two")):
        page.locator("#prompt").fill(text)
        page.locator("#prompt").press("Enter")
        done(number + 1)
    page.get_by_role("button", name="Write this answer again").last.click()
    assert done(2) == ["one", "two"]
    assert sent[2].pop("seed") >= 0
    assert sent[2] == sent[1]
    expect(page.locator(".figures").last).to_contain_text("the same as before")
    page.get_by_role("button", name="Edit your text").first.click()
    expect(page.locator("#prompt")).to_have_value("one")
    page.locator("#prompt").fill("three")
    page.locator("#prompt").press("Enter")
    assert done(1) == ["three"]
    assert sent[3]["messages"] == [{"role": "user", "content": "three"}]
    expect(page.locator("#undo")).to_contain_text("1 turn replaced, 1 behind it removed.")
    page.locator("#undo button").click()
    assert done(2) == ["one", "two"]


def test_what_is_stored_is_not_trusted(page: Page) -> None:
    """Another server may have had this address; and no conversation is too long to store."""
    page.evaluate(
        """() => {
          const turn = {mode: 'text', prompt: '<b>x</b>', text: '<img src=x onerror=alert(1)>',
                        tokens: [], gaps: [], line: '', error: ''};
          const wrong = [null, 1, {}, {...turn, mode: 'toString'}, {...turn, text: 5},
                         {...turn, tokens: [{}]}, {...turn, mode: 'fill', gaps: [['a']]}];
          const whole = {turns: [...wrong, turn], lost: 'x', draft: {}};
          const fields = {strategy: 'none', steps: {}, cache: 'no'};
          addEventListener('pagehide', () => {
            sessionStorage['qdc conversation'] = JSON.stringify(whole);
            sessionStorage['qdc settings'] = JSON.stringify(fields);
          });
        }"""
    )
    page.reload()
    expect(page.locator(".mine")).to_have_text("<b>x</b>")
    expect(page.locator("#log > .hint")).to_contain_text("7 earlier turns were not kept")
    assert page.locator("#log :is(b, img)").count() == 0
    page.evaluate(
        "turns = Array.from({length: 9}, () => newTurn('text', 'y'.repeat(1e5))); lost = 2"
    )
    page.reload()
    expect(page.locator("#log > .hint")).to_contain_text("8 earlier turns were not kept")
    assert page.locator(".mine").count() == 3
    assert page.evaluate("sessionStorage['qdc conversation'].length") < 410_000


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
    expect(page.locator("#strategy")).to_be_hidden()  # The settings move when the page is told.
    page.wait_for_function("document.documentElement.scrollWidth === 360")
    expect(page.locator("#send")).to_be_in_viewport()
    page.locator("#settings").click()
    page.locator("#strategy").select_option("random")
    expect(page.locator("#about")).to_have_text("Places in random order.")
    page.locator("#length").fill("999")
    page.keyboard.press("Escape")
    expect(page.locator("#strategy")).to_be_hidden()
    page.locator("#prompt").fill("x")
    page.locator("#send").click()
    expect(page.locator("#length")).to_be_focused()
    assert page.locator("#sheet").evaluate("sheet => sheet.matches(':modal')")
    page.locator("#length").fill("4")
    page.keyboard.press("Escape")
    page.locator("#mode").select_option("fill")  # The mode with the longest name.
    page.evaluate("busy(true)")
    expect(page.locator("#stop")).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.getElementById('form').scrollWidth") <= 360
    page.evaluate("busy(false)")
    expect(page.locator("#send")).to_be_in_viewport(ratio=1)
    page.set_viewport_size({"width": 900, "height": 700})
    expect(page.get_by_role("group", name="Settings")).to_be_visible()


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
            assert page.evaluate("sessionStorage['qdc key']") is None
    expect(page.locator("#name")).to_have_text(locked.model)
    expect(page.locator("#entry")).to_be_hidden()
    assert page.get_by_role("alert").count() == 0
    page.reload()
    expect(page.locator("#name")).to_have_text(locked.model)
    page.locator("#length").fill("4")
    page.locator("#prompt").fill("import os")
    page.locator("#prompt").press("Enter")
    expect(page.locator(".figures")).to_contain_text("4 tokens ·", timeout=30_000)
    page.evaluate("sessionStorage['qdc key'] = 'old'")
    page.reload()
    expect(page.locator("#entry")).to_be_visible()
    assert page.locator("article").count() == 0, "nothing is shown to whoever has no key"
    page.locator("#key").fill("of-a-file")
    page.locator("#key").press("Enter")
    expect(page.locator(".figures")).to_contain_text("4 tokens ·")
    page.locator("#leave").click()
    expect(page.locator("#entry")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    assert page.locator("article").count() == 0
    context.close()
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{locked.url}/#key=of-a-file")
    expect(page.locator("#name")).to_have_text(locked.model)
    assert page.url == f"{locked.url}/", "the key does not stay in the address"
    assert page.locator("#strategy option").count() > 3
    context.close()
