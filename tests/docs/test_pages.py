"""The code on the pages runs, and the generated page is up to date."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qdc.cli import run
from tests.support.checkpoints import write_checkpoint
from tests.support.documents import blocks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = (
    "activations.md",
    "allocation.md",
    "calibration.md",
    "compare.md",
    "decoding.md",
    "format.md",
    "huggingface.md",
    "ir.md",
    "modules.md",
    "planning.md",
    "report.md",
    "writing_backends.md",
    "writing_families.md",
    "writing_passes.md",
    "writing_quantizers.md",
    "writing_strategies.md",
)

SLOW = ("activations.md", "allocation.md", "compare.md")
"""Pages that take about ten seconds each, of what other tests do on smaller models."""


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW)) for page in PAGES]
)
def test_code_on_the_page_runs(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A block that starts with a file name becomes that file; every other one is executed."""
    model = tmp_path / "examples" / "tiny-llada"
    write_checkpoint(model, d_model=64, mlp_hidden_size=384)
    shutil.copyfile(ROOT / "examples" / "tiny-llada" / "heldout.jsonl", model / "heldout.jsonl")
    shutil.copytree(ROOT / "examples" / "plugins", tmp_path / "examples" / "plugins")
    monkeypatch.chdir(tmp_path)
    for number, (language, text) in enumerate(blocks(DOCS / page)):
        if language == "sh":
            run_lines(text, capsys)
            continue
        name = re.match(r"# (\w+\.py)\n", text)
        file = tmp_path / (name.group(1) if name else f"block_{number}.py")
        file.write_text(text, encoding="utf-8")
        if not name or file.name.startswith("test_"):
            run_tests(file, tmp_path)


def run_lines(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the ``qdc`` and ``diff`` commands of a block."""
    for line in text.splitlines():
        words = shlex.split(line)
        if words[0] == "diff":
            assert subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode == 1
            continue
        assert words[0] == "qdc"
        code = run(words[1:])
        out, error = capsys.readouterr()
        assert code == 0, f"{line}\n{error}"
        assert out


def run_tests(file: Path, folder: Path) -> None:
    """Execute a file, then call the test functions that it defines."""
    for name, value in runpy.run_path(str(file)).items():
        if name.startswith("test_"):
            value(folder / name)


def test_every_page_has_code_that_runs() -> None:
    assert all(blocks(DOCS / page) for page in PAGES)


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.name}: {target}"
        for page in (ROOT / "README.md", *DOCS.glob("*.md"))
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_files_that_the_pages_name_exist() -> None:
    named = re.compile(r"`((?:examples|passes|backends|tests|docs)/[\w./-]*)`")
    broken = [
        f"{page.name}: {path}"
        for page in (ROOT / "README.md", *DOCS.glob("*.md"))
        for path in named.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / path).exists()
    ]
    assert not broken


def checked(script: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What ``python docs/generate.py --check`` ends with; nothing if the page is up to date."""
    monkeypatch.setattr(sys, "argv", [str(script), "--check"])
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as ended:
        return str(ended.code)
    return None


def test_generated_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(DOCS / "generate.py", monkeypatch) is None


def test_check_refuses_a_stale_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "generate.py"
    script.write_text((DOCS / "generate.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "passes.md").write_text("old\n", encoding="utf-8")
    assert checked(script, monkeypatch) == "passes.md is stale; write it again with: make docs"
