"""Help is instant, fits on a screen, and shows examples."""

import re
import time

import pytest

from qdc.cli.describe import describe
from qdc.errors import InvalidPipeline
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from tests.cli.conftest import Command
from tests.support.commands import python, qdc

COMMANDS = (
    "compile", "plan", "compare", "show", "opt", "passes", "backends", "families", "strategies",
    "run", "generate", "chat", "eval", "report", "inspect-calibration", "verify", "export", "serve",
)  # fmt: skip
SCREEN = 48


def test_help_does_not_import_torch() -> None:
    script = (
        "import sys; from qdc.cli import run; code = run(['compile', '--help']); "
        "heavy = {n.split('.')[0] for n in sys.modules} & "
        "{'torch', 'transformers', 'numpy', 'networkx', 'safetensors'}; "
        "print('IMPORTED', code, sorted(heavy))"
    )
    found = python("-c", script)
    assert found.stdout.splitlines()[-1] == "IMPORTED 0 []", found.stderr


def test_help_answers_at_once() -> None:
    """Half a second on an idle machine; other work may run beside the tests."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert qdc("--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.5


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_and_shows_examples(
    command: str, qdc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = qdc(command, "--help")
    lines = text.splitlines()
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= 80
    assert re.search(rf"^  Examples:\n    qdc {command}", text, re.MULTILINE)
    assert "--json" in text


def test_the_first_page_lists_every_command_with_a_whole_sentence(qdc: Command) -> None:
    listed = qdc("--help").partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


def test_no_arguments_show_the_first_page(qdc: Command) -> None:
    assert qdc() == qdc("--help")


def test_version(qdc: Command) -> None:
    assert re.fullmatch(r"qdc \d+\.\d+\.\d+\n", qdc("--version"))


@pytest.mark.parametrize("name", ["guide", "distill", "quantize-activations"])
def test_options_that_a_pass_refuses_are_not_described(name: str) -> None:
    options = {option.name for option in describe(standard_registry().passes[name]).options}
    assert "geometry" in options
    assert not options & {"token-weights", "masked-weight", "certainty-base", "certainty-exponent"}
    with pytest.raises(InvalidPipeline, match="it does not read token-weights"):
        build_plan(f"{name}{{token-weights=certainty}}", standard_registry())
