"""Every command that reads text says how much of it there was, and how much was used."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

SAMPLES, LENGTH = 4, 16
FEW = ("--samples", SAMPLES, "--length", LENGTH)


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """Ten documents, of which nine are shorter than a window."""
    lines = [{"text": f"x = {n}"} for n in range(9)]
    lines.append({"text": "".join(f"print({n})\n" for n in range(18))})
    path = tmp_path / "short.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def check(use: dict[str, object], pack: str) -> None:
    assert (use["pack"], use["documents"], use["counted"]) == (pack, 10, True)
    assert isinstance(use["tokens"], int)
    assert use["tokens"] > 100
    assert (use["used"] == 1) == (pack == "within")


@pytest.mark.parametrize("pack", ["documents", "within"])
def test_a_compile_counts(
    pack: str, model: Path, short: Path, tmp_path: Path, qdc: Command
) -> None:
    given = (*FEW, "--calibration", short, "--passes", "rtn", "--pack", pack)
    out = tmp_path / "out"
    report = json.loads(qdc("compile", model, "-o", out, *given, "--json"))
    [use] = report["calibration_text"]
    check(use, pack)
    assert (use["windows"], use["length"]) == (SAMPLES, LENGTH)
    assert use["distinct"] == SAMPLES
    said = f"pack={pack}: 4 windows of 16 tokens, 4 of them distinct"
    assert said in (tmp_path / "out-report" / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out-report" / "report.json").read_text())[
        "calibration_text"
    ] == [use]
    summary = qdc("compile", model, "-o", out, *given, "--force")
    assert f"10 documents of {use['tokens']} tokens, {use['used']} used" in summary
    assert said in summary
    warned = "9 of 10 documents are too short for pack=within"
    assert (warned in summary) == (pack == "within")
    planned = json.loads(qdc("plan", model, *given, "--json"))
    assert planned["calibration_text"] == [use]
    assert any(warned in line for line in planned["warnings"]) == (pack == "within")
    assert said in qdc("plan", model, *given)


@pytest.mark.parametrize("pack", ["documents", "within"])
def test_an_inspection_counts(pack: str, model: Path, short: Path, qdc: Command) -> None:
    given = (*FEW, "--calibration", short, "--ratios", "1", "--top", 2, "--pack", pack)
    check(json.loads(qdc("inspect-calibration", model, *given, "--json"))["calibration_text"], pack)
    table = qdc("inspect-calibration", model, *given)
    assert "10 documents of " in table
    assert ("warning   9 of 10 documents are too short" in table) == (pack == "within")


@pytest.mark.parametrize("pack", ["documents", "within"])
def test_an_evaluation_counts(pack: str, model: Path, short: Path, qdc: Command) -> None:
    given = ("--text", short, "--length", LENGTH, "--seeds", 1, "--ratios", "0.5", "--pack", pack)
    result = json.loads(qdc("eval", model, *given, "--json"))
    check(result["text"], pack)
    assert result["text"]["windows"] == result["windows"] > 4
    table = qdc("eval", model, *given)
    assert f"text: pack={pack}: {result['windows']} windows of 16 tokens" in table
    assert ("warning: 9 of 10 documents are too short" in table) == (pack == "within")
    both = json.loads(qdc("eval", model, *given, "--against", model, "--infills", 0, "--json"))
    assert both["candidate"]["text"] == both["original"]["text"] == result["text"]


def test_records_of_dialogues_are_counted(model: Path, tmp_path: Path, qdc: Command) -> None:
    path = tmp_path / "chat.jsonl"
    lines = [{"q": f"say {n}", "a": f"{n}" if n % 4 else ""} for n in range(12)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    given = (*FEW, "--calibration", path, "--chat-fields", "q,a", "--passes", "rtn")
    [use] = json.loads(qdc("plan", model, *given, "--json"))["calibration_text"]
    assert (use["pack"], use["documents"]) == ("records", 12)
    assert 4 <= use["used"] <= use["looked_at"] - use["unusable"] <= 9
    assert use["cut"] > 0
    planned = json.loads(qdc("plan", model, *given, "--pack", "within", "--json"))
    assert any(
        "pack=within is given, and the samples are prompts" in line for line in planned["warnings"]
    )
