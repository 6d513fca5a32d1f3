"""The card of an artifact: what it says, of whom it takes that, and who may change it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import qdc
from qdc.artifact.card import BEGIN, END, UNKNOWN, Figures, card_text, note_loss
from qdc.artifact.commit import artifact_digest
from qdc.artifact.digests import CARD, DIGESTS
from qdc.checkpoint.folder import Checkpoint
from qdc.cli import run
from qdc.pipeline.registry import standard_registry
from qdc.runtime.integrity import examine
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny

FRONT = """---
license: other
license_name: "a licence"
license_link: https://example.org/licence
tags: [x]
---
license: not-this-one
"""


def compiled(folder: Path, front: str = "", **fields: Any) -> tuple[qdc.CompileReport, str]:
    """Compile a model with this card and these fields of its configuration: report and card."""
    model = write_checkpoint(
        folder / "model", d_model=32, mlp_hidden_size=48, n_layers=1,
        edit_config=lambda config: config.update(fields),
    )  # fmt: skip
    if front:
        (model / CARD).write_text(front, encoding="utf-8")
    report = compile_tiny(model, folder / "out", write_report=True)
    return report, (folder / "out" / CARD).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, qdc.CompileReport, str]:
    folder = tmp_path_factory.mktemp("card")
    report, card = compiled(folder, FRONT, _name_or_path="GSAI-ML/LLaDA-8B-Base")
    return folder / "out", report, card


def test_card_says_of_what_it_was_made(named: tuple[Path, qdc.CompileReport, str]) -> None:
    out, report, card = named
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert "\nbase_model: GSAI-ML/LLaDA-8B-Base\nbase_model_relation: quantized\n" in card
    assert "\nlicense: other\nlicense_name: a licence\n" in card
    assert "not-this-one" not in card
    assert f"| pipeline | `{report.pipeline}` |" in card
    assert config["checkpoint_sha256"] in card
    assert (
        f"| {float(report.sign_bits):.6g} {report.bits_word}, {report.effective_bits:.4f} " in card
    )
    assert "with every stored byte counted |" in card
    assert f"{BEGIN}\n{UNKNOWN}\n{END}" in card
    assert str(out.parent) not in card


def test_card_counts_a_vocabulary_that_is_quantized(
    named: tuple[Path, qdc.CompileReport, str],
) -> None:
    figures = Figures(
        layers=1, weights=8, bits_word="code bits", bits=959 / 624, effective_bits=1.5375,
        whole_bits=1.99934, bytes_before=99, tensor_bytes=9, rotated=7,
    )  # fmt: skip
    facts = dict.fromkeys(("checkpoint_sha256", "pipeline", "qdc_version", "backend"), "x")
    card = card_text(Checkpoint(named[0].parent / "model"), facts, figures).decode()
    assert "# LLaDA-8B-Base, compiled to 1.54 bits\n" in card
    counted = "1.53686 code bits, 1.5375 with every stored byte counted"
    assert f"| {counted}, 1.9993 with embedding and head |" in card
    assert "| rotated | inputs of 7 layers |" in card


def test_commands_and_code_of_the_card_work(
    named: tuple[Path, qdc.CompileReport, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _, card = named
    monkeypatch.chdir(out.parent)
    text = card.replace("FOLDER", "out")
    (code,) = (part.partition("```")[0] for part in text.split("```python\n")[1:])
    exec(code, {})
    assert "qdc chat out" in text
    assert run(["run", "out", "for i in <mask>(10):"]) == 0
    assert run(["verify", "out"]) == 0


def test_nothing_is_said_that_is_not_known(tmp_path: Path) -> None:
    """A folder of somebody is no name of the hub, and without a card no licence is known."""
    _, card = compiled(tmp_path, _name_or_path="/home/somebody/model")
    assert "base_model" not in card.partition("\n# ")[0]
    assert "somebody" not in card
    assert "license" not in card
    assert "| licence of the base model | not known: " in card


def test_hostile_card_of_the_base_model(tmp_path: Path) -> None:
    front = "---\nlicense: mit\nlicense_link: javascript:<script>|x\nlicense_name: a\x1b[2Jb\n---\n"
    _, card = compiled(tmp_path, front, architectures=["LLaDAModelLM"])
    assert "\nlicense: mit\n" in card
    assert "script" not in card
    assert "\x1b" not in card


def test_card_may_be_changed(
    named: tuple[Path, qdc.CompileReport, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No digest covers it, and it is no part of what a report is of."""
    folder = shutil.copytree(named[0], tmp_path / "out")
    before = artifact_digest(folder)
    assert CARD not in (folder / DIGESTS).read_text()
    (folder / CARD).write_text("mine")
    assert artifact_digest(folder) == before
    found = examine(folder, standard_registry(), lambda *_: None)
    assert not found.damaged
    assert not found.unverified
    qdc.load(folder)
    assert not caplog.records
    assert not note_loss(folder, ["x"])
    assert (folder / CARD).read_text() == "mine"
    (folder / CARD).unlink()
    assert not note_loss(folder, ["x"])


def test_evaluation_is_written_into_the_card(
    named: tuple[Path, qdc.CompileReport, str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, _, card = named
    (tmp_path / "held.txt").write_text("for i in range(10): print(i)\n" * 60)
    options = ("--text", str(tmp_path / "held.txt"), "--ratios", "0.5,0.85", "--length", "32")
    counts = ("--windows", "4", "--seeds", "2", "--infills", "0")
    asked = ["eval", str(out), "--against", str(out.parent / "model"), *options, *counts]
    for _ in range(2):
        assert run([*asked, "--report", "--json"]) == 0
    data = json.loads(capsys.readouterr().out.split("\n}\n")[0] + "\n}")
    new = (out / CARD).read_text(encoding="utf-8")
    assert new.partition(BEGIN)[0] == card.partition(BEGIN)[0]
    written = new.partition(BEGIN)[2].partition(END)[0]
    assert UNKNOWN not in written
    assert written.count("| mask ratio | loss | rise over the base model |") == 1
    assert "held.txt sha256:" in written
    assert str(out.parent) not in written
    loss, rise = data["candidate"]["ratios"][1]["loss"], data["differences"][1]["rise"]
    assert f"| 0.85 | {loss:.4f} | {rise:+.4f} |" in written
    assert run(["verify", str(out)]) == 0
