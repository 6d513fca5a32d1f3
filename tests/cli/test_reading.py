"""``show``, ``run``, ``eval``, ``passes`` and ``backends`` on good input."""

import io
import json
from pathlib import Path

import pytest

from qdc.models.families import FAMILIES
from qdc.runtime.decoding.strategies import STRATEGIES
from tests.cli.conftest import Command
from tests.support.commands import qdc as command


def test_show_reads_a_model_an_artifact_and_a_dump(
    model: Path, artifact: Path, qdc: Command
) -> None:
    texts = [qdc("show", path) for path in (model, artifact, artifact / "ir.qdc")]
    assert all(text.startswith("graph @") for text in texts)
    assert texts[1] == texts[2]
    assert "@packed" in texts[1]
    assert "@packed" not in texts[0]


def test_show_selects_nodes_and_tags(artifact: Path, qdc: Command) -> None:
    text = qdc("show", artifact, "--only", "blocks.1.*", "--tags", "orders,@packed")
    assert "blocks.0.q_proj" not in text
    tags = {line.split()[0] for line in text.splitlines() if line.startswith("      @")}
    assert tags == {"@orders", "@packed"}


def test_show_as_json(artifact: Path, qdc: Command) -> None:
    data = json.loads(qdc("show", artifact, "--only", "*.q_proj", "--tags", "orders", "--json"))
    assert [node["name"] for node in data["nodes"]] == ["blocks.0.q_proj", "blocks.1.q_proj"]
    assert data["nodes"][0]["annotations"]["orders"]["widths"] == [128, 32]


@pytest.mark.slow
def test_real_command_shows_the_ir(artifact: Path, qdc: Command) -> None:
    found = command("show", artifact)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == qdc("show", artifact)


def test_run_fills_the_gaps(model: Path, artifact: Path, qdc: Command) -> None:
    for folder in (model, artifact):
        text = qdc("run", folder, "for <mask> in range")
        assert text.startswith("for ")
        assert text.endswith(" in range\n")
        assert "<mask>" not in text


def test_run_as_json(artifact: Path, qdc: Command) -> None:
    data = json.loads(qdc("run", artifact, "a <mask> b <mask>", "--gap", "2", "--json"))
    assert len(data["filled"]) == 4
    assert data["text"].startswith("a ")


def test_run_reads_stdin(artifact: Path, qdc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    given = qdc("run", artifact, "def f(<mask>):", "--steps", 1)
    monkeypatch.setattr("sys.stdin", io.StringIO("def f(<mask>):"))
    assert qdc("run", artifact, "-", "--steps", 1) == given


@pytest.mark.slow
def test_real_command_runs_a_model(artifact: Path) -> None:
    found = command("run", artifact, "x = <mask>", "--json")
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout)["text"].startswith("x = ")


def test_eval_of_one_model(artifact: Path, text: Path, qdc: Command) -> None:
    table = qdc("eval", artifact, "--text", text, "--length", 4, "--seeds", 1, "--ratios", "0.5,1")
    figures = table.partition("\n\n")[0].splitlines()[2:]
    assert [line.split()[0] for line in figures] == ["0.5", "1", "bound", "unigram"]
    data = json.loads(qdc("eval", artifact, "--text", text, "--length", 4, "--seeds", 1, "--json"))
    assert [row["ratio"] for row in data["ratios"]] == [0.15, 0.5, 0.85]


def test_real_command_compares_two_models(model: Path, artifact: Path, text: Path) -> None:
    found = command(
        "eval", artifact, "--against", model, "--text", text, "--length", 4, "--seeds", 2, "--json"
    )
    assert (found.returncode, found.stderr) == (0, "")
    data = json.loads(found.stdout)
    for here, there, rise in zip(
        data["candidate"]["ratios"], data["original"]["ratios"], data["differences"], strict=True
    ):
        assert here["tokens"] == there["tokens"]
        assert rise["rise"] == pytest.approx(here["loss"] - there["loss"])
        assert rise["standard_error"] > 0


def test_a_model_against_itself_differs_by_nothing(model: Path, text: Path, qdc: Command) -> None:
    table = qdc("eval", model, "--against", model, "--text", text, "--length", 4)
    assert table.count("+0.0000  0.0000  +0.0000 .. +0.0000") == 4
    assert table.count("100.0%  100.0% .. 100.0%  0.0000  0.0000 .. 0.0000") == 3
    assert "equal: 100.0% of the tokens (100.0% .. 100.0%), 9 gaps" in table
    assert max(map(len, table.splitlines())) <= 100


def test_passes_lists_all_with_presets(qdc: Command) -> None:
    text = qdc("passes")
    passes, _, presets = text.partition("\npresets\n")
    assert presets
    assert max(map(len, passes.splitlines())) <= 100
    for name in ("calibrate-mcs", "daq-lower", "pack", "data-free"):
        assert f"\n{name} " in text


def test_passes_describes_one(qdc: Command) -> None:
    text = qdc("passes", "rtn-lower")
    assert "    after        @rtn" in text
    assert "1 | 2 | 4 | 8" in text
    assert "daq-lower" not in text
    assert qdc("passes", "uniform").endswith(",pack\n")


def test_passes_by_what_they_provide(qdc: Command) -> None:
    def names(tag: str) -> list[str]:
        data = json.loads(qdc("passes", "--provides", tag, "--json"))
        return [entry["name"] for entry in data["passes"]]

    assert names("salience") == ["sensitivity"]
    assert names("curvature") == ["guide"]  # where its options say so
    assert {"daq-lower", "rtn-lower", "polish"} <= set(names("@lowered"))


def test_passes_as_json(qdc: Command) -> None:
    data = json.loads(qdc("passes", "--json"))
    assert data["presets"]["data-free"] == "rtn-lower,pack"
    (rtn,) = (entry for entry in data["passes"] if entry["name"] == "rtn-lower")
    assert rtn["options"][0] == {
        "name": "bits",
        "values": "1 | 2 | 4 | 8",
        "required": False,
        "default": 2,
        "help": "bits of a code",
    }


def test_backends(qdc: Command) -> None:
    assert "reference" in qdc("backends")
    found = json.loads(qdc("backends", "--json"))["backends"]
    assert [entry["name"] for entry in found] == ["reference", "cpu", "triton", "gguf"]
    for entry in found:
        assert entry["reads"] == ["packed"]
        assert not {"whole_model", "calibration"} & set(entry)


def test_strategies(qdc: Command) -> None:
    text = qdc("strategies")
    listed = json.loads(qdc("strategies", "--json"))["strategies"]
    found = {entry["name"]: entry for entry in listed}
    assert list(found) == [kind.name for kind in STRATEGIES]
    for name, entry in found.items():
        assert f"\n{name}\n  source   {entry['source']}\n  reads    --" in text
        assert entry["summary"]
        assert (entry["origin"], entry["options"] == []) == (None, not entry["canvas"])
    assert found["dynamic"]["defaults"] == {"threshold": 0.85}
    assert "--threshold [0.85]" in text
    assert [name for name, entry in found.items() if entry["verifier"]] == ["apd"]
    assert [name for name, entry in found.items() if entry["canvas"]] == ["renoise"]
    assert "entropy-bound" in text
    help_page = qdc("generate", "--help")
    assert "qdc strategies lists low-confidence, threshold, entropy and all others" in help_page


def test_defaults_keep_their_types(qdc: Command) -> None:
    data = json.loads(qdc("passes", "--json"))
    entries = {entry["name"]: entry for entry in data["passes"]}
    assert entries["abmp-allocate"]["reads"] == ["salience"]
    assert entries["calibrate-mcs"]["calibration"] is True
    kinds = {type(o["default"]) for entry in data["passes"] for o in entry["options"]}
    assert kinds <= {int, float, bool, str, list, type(None)}
    assert {int, float} <= kinds


def test_pipelines_are_not_wrapped(model: Path, tmp_path: Path, qdc: Command) -> None:
    passes = f"{','.join(['rtn-lower'] * 12)},pack"
    text = qdc("compile", model, "-o", tmp_path / "out", "--passes", passes)
    assert f"\npipeline  {passes}\n" in text
    assert [line for line in text.splitlines() if line != line.rstrip()] == []
    assert [line for line in qdc("passes").splitlines() if line != line.rstrip()] == []


def test_columns_set_the_width(qdc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, qdc("backends").splitlines())) <= 60


def test_families_lists_all_with_their_proofs(qdc: Command) -> None:
    text = qdc("families")
    listed, _, proofs = text.partition("\n\n")
    assert max(map(len, listed.splitlines())) <= 80
    data = json.loads(qdc("families", "--json"))
    assert [entry["name"] for entry in data["families"]] == [family.name for family in FAMILIES]
    (canvas,) = (line for line in listed.splitlines() if line.startswith("diffusion-gemma"))
    assert canvas.split()[2] == "none"
    for entry in data["families"]:
        assert f"\n{entry['name']} " in listed
        assert all(name in listed for name in entry["architectures"])
        assert f"  sees       {entry['attention']}\n" in proofs
        for proof in entry["proved"]:
            assert proof["what"] in proofs
            assert proof["test"] in proofs
    for entry in data["refused"]:
        assert entry["reason"] in proofs
