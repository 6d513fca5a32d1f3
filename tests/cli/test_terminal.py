"""What a terminal shows: pipelines and texts that wrap, conclusions, summaries, completion."""

import io
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from qdc.cli import run
from qdc.cli.inspect_calibration import conclusion
from qdc.cli.terminal import at_commas, print_pipeline
from qdc.numerics.shift import Shift
from qdc.passkit.inspection import StageShift
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from tests.cli.conftest import Command
from tests.cli.test_tables import report
from tests.support.commands import environment

ROOT = Path(__file__).parents[2]
LISTS = "stages(calibrate-mcs{samples=8},slim-allocate,slim-lower{widths=1,2,3}),pack"


@pytest.mark.parametrize("width", [1, 30, 80])
def test_pipelines_break_behind_commas_and_stay_what_they_are(width: int) -> None:
    registry = standard_registry()
    for text in (*(preset.text for preset in registry.presets.values()), LISTS):
        lines = at_commas(text, width)
        assert "".join(lines) == text
        assert all(line.endswith(",") for line in lines[:-1])
        assert all(line.count("{") == line.count("}") for line in lines)
        assert all(len(line) <= width or "," not in line[:-1].partition("{")[0] for line in lines)
    text = registry.presets["default"].text
    assert build_plan("\n    ".join(at_commas(text, width)), registry) == build_plan(text, registry)


@pytest.mark.parametrize("terminal", [True, False])
def test_pipeline_is_broken_on_a_terminal_alone(terminal: bool) -> None:
    file = io.StringIO()
    to = Console(file=file, width=66, force_terminal=terminal, color_system=None)
    text = standard_registry().presets["default"].text
    print_pipeline(to, "pipeline  ", text)
    lines = file.getvalue().splitlines()
    assert (len(lines) > 1) == terminal
    assert all(len(line) <= 66 for line in lines) == terminal
    assert all(line.startswith(" " * 10) for line in lines[1:])


def test_plan_breaks_the_pipeline_at_commas(
    model: Path, qdc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = qdc("plan", model).splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("pipeline "))
    assert lines[first].endswith(",")
    assert max(map(len, lines[first : first + 3])) <= 80


def test_final_text_wraps_as_the_live_view_does(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    words = "a word and another one " * 6
    assert run(["generate", str(model), words, "--length", "4"]) == 0
    final = capsys.readouterr().out.rpartition("\x1b[?25h")[2]  # behind the view
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", final)
    wrapped = textwrap.wrap(words, 40)
    lines = [line.rstrip() for line in shown.splitlines()]
    first = lines.index(wrapped[0])
    assert lines[first : first + 3] == wrapped[:3]


def test_report_prints_as_a_summary() -> None:
    lines = str(report()).splitlines()
    assert lines[0] == "llada compiled to out"
    assert lines[1].startswith("4 layers, 81,920 weights: 2 sign bits a weight, 2.5859 effective")
    assert "7 MB (6.676 MiB) before, 2 MB (1.907 MiB) after" in lines
    assert len(lines) < 10
    assert "LayerReport" not in str(report())


def stage(ratio: float, distance: float | None) -> StageShift:
    every = None if distance is None else Shift(0.0, 0.5, distance, 0.1, 0.2)
    return StageShift("blocks.3", "x", ("q_proj", "k_proj"), ratio, 0, every, None, None)


@pytest.mark.parametrize(
    ("chance", "masked", "said", "advice"),
    [
        (0.5, 1.5, "read much: at ratio 0.9 second moments lie 1.50", "so calibrate on masked"),
        (0.5, 0.6, "hardly: at ratio 0.9 second moments lie 0.60", "clean samples would do"),
    ],
)
def test_inspection_leads_with_its_conclusion(
    chance: float, masked: float, said: str, advice: str
) -> None:
    found = [stage(0.0, chance), stage(0.5, 0.1), stage(0.9, masked), stage(0.9, None)]
    lines = conclusion(found, (0.5, 0.9))
    assert said in lines[0]
    assert f"{masked / chance:.1f} times" in lines[0]
    assert lines[1] == f"the most at blocks.3 q_proj k_proj, {masked:.2f}"
    assert lines[2].startswith(advice)


def test_inspection_of_nothing_concludes_nothing() -> None:
    assert "nothing was measured" in conclusion([stage(0.0, None), stage(0.9, None)], (0.9,))[0]


def test_shell_completes_commands_and_options() -> None:
    """Without torch: who presses a key does not wait for seconds."""
    code = (
        "import sys; from qdc.cli import run\n"
        "try: run([])\n"
        "finally: sys.stderr.write('torch' if 'torch' in sys.modules else 'none')"
    )
    for words, count, expected in (("qdc comp", 1, "compile"), ("qdc plan --sam", 2, "--samples")):
        asked = {"_QDC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            env={**environment(), **asked},
        )  # fmt: skip
        assert expected in found.stdout.splitlines(), found.stderr
        assert found.stderr == "none"


def test_exit_codes_are_documented() -> None:
    from qdc.cli import STOPPED

    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("the exit code")[2]
    assert all(f"{code} (" in text[:600] for code in (0, 1, 2, *STOPPED))
