"""README.md and the tutorial run from top to bottom, on the embedded model, as they are printed.

``tests/support/documents.py`` says what is not as printed: the model's name and a port. Both pages
use the artifact that other tests use too, and share one folder, so no line runs twice.
"""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from tests.support.checkpoints import EMBEDDED
from tests.support.commands import ROOT, qdc
from tests.support.documents import ADDRESS, Desk, blocks, desk
from tests.support.embedded import LINE, SAMPLES
from tests.support.ggufs import needs_engine, needs_gguf

README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"
NOT_RUN = {
    "make demo": "it sets up an environment; what it prints is tested in tests/examples",
    "pip install ": "from the network; tests/test_wheel.py installs a wheel in a bare environment",
    "docker build ": "no daemon here; tests/test_dockerfile.py reads its steps, and runs them",
    "torchrun ": "a GPU for each of four processes; tests/distributed runs torchrun on CPUs",
    'qdc generate out "def read(path):" --device cuda': "no GPU here",
}
"""Beginnings of lines that cannot run here, and why."""
GGUF = ("qdc compile MODEL -o tiny.gguf ", "python examples/llamacpp_generate.py ")
PLUGIN = "qdc compile MODEL -o protected "
SLOW = (*GGUF, PLUGIN)
"""Beginnings of lines that take fifteen seconds or more: ``make test-slow`` runs them."""


def lines(page: Path) -> list[str]:
    """Lines of a page's shell blocks, continued ones joined."""
    text = "".join(text for language, text in blocks(page) if language == "sh")
    return [line for line in text.replace("\\\n", " ").splitlines() if line]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    found = desk(tmp_path_factory)
    with found.servers:
        yield found


@pytest.mark.parametrize("page", [README, TUTORIAL], ids=lambda page: page.name)
def test_page_runs_as_it_is_printed(
    page: Path, shared: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shared.folder)
    for language, text in blocks(page):
        if language == "sh":
            kept = [
                line
                for line in text.replace("\\\n", " ").splitlines()
                if not line.startswith((*NOT_RUN, *SLOW))
            ]
            text = "\n".join(kept)
        shared.block(language, text)
    with urllib.request.urlopen(shared.served[ADDRESS].url, timeout=60) as answer:
        assert b"<title>" in answer.read()
    assert (shared.folder / "out" / "README.md").exists()
    assert (shared.folder / "out-report" / "report.html").exists()


@pytest.mark.slow
@needs_gguf
@needs_engine
def test_llama_cpp_fills_what_the_page_compiles(
    shared: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shared.folder)
    found = [line for line in lines(README) if line.startswith(GGUF)]
    assert len(found) == len(GGUF)
    for line in found:
        shared.line(line)


def plugin_line() -> str:
    return next(line for line in lines(README) if line.startswith(PLUGIN))


def test_plugin_line_names_a_pass_of_its_file(
    shared: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning does all but the arithmetic: it loads the file, builds the pipeline, checks it."""
    monkeypatch.chdir(shared.folder)
    shared.line(plugin_line().replace(PLUGIN, "qdc plan MODEL "))


@pytest.mark.slow
def test_plugin_line_compiles(shared: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shared.folder)
    shared.line(plugin_line())


def test_every_reason_for_not_running_a_line_is_needed() -> None:
    every = lines(README) + lines(TUTORIAL)
    assert [
        start for start in (*NOT_RUN, *SLOW) if not any(x.startswith(start) for x in every)
    ] == []


def test_pages_compile_what_all_tests_share() -> None:
    """Else each of them would compile the embedded model once more."""
    for page in (README, TUTORIAL):
        bare = [
            line.replace("MODEL", "examples/tiny-llada").split("  #")[0].rstrip()
            for line in lines(page)
        ]
        assert LINE in bare


def test_readme_answers_in_the_order_of_a_newcomer_s_questions() -> None:
    text = README.read_text(encoding="utf-8")
    order = (
        "curve-masked.svg",
        "| LLaDA-8B",
        "## Does it fit you?",
        "## Install",
        "## Three commands",
        "## Use",
    )
    places = [text.index(each) for each in order]
    assert places == sorted(places)


def test_tutorial_shows_what_is_printed() -> None:
    """The plan of today's ``default``; of the artifact what follows from shapes and options."""
    text = TUTORIAL.read_text(encoding="utf-8")
    # In a process of its own: what other tests have loaded is in no user's plan.
    printed = qdc("plan", EMBEDDED, "--effort", "low").stdout.splitlines()
    shown = text.partition("lines that matter:\n\n```\n")[2].partition("\n```")[0].splitlines()
    assert len(shown) == 4
    assert [line for line in shown if line not in printed] == []
    plan = str(build_plan("default", standard_registry()))
    drawn = plan.replace("calibrate-cross", f"calibrate-cross{{samples={SAMPLES}}}")
    assert f"  after {drawn}" in text.splitlines()
