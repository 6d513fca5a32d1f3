"""``qdc inspect-calibration``: a table, JSON, and what it refuses."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

FEW = ("--samples", 4, "--length", 24, "--top", 3)


def test_the_table_names_every_stage_and_ratio(model: Path, qdc: Command) -> None:
    text = qdc("inspect-calibration", model, *FEW, "--ratios", "0.2,1")
    conclusion, _, text = text.partition("\n\n")
    assert conclusion.startswith("masks move what the layers read")
    assert text.startswith("4 windows of 24 tokens from embedded: mean over 8 stages\n")
    summary, _, each = text.partition("every stage")
    assert [line.split()[0] for line in summary.splitlines()[2:5]] == ["0", "0.2", "1"]
    assert "blocks.1 q_proj k_proj v_proj" in each
    assert "blocks.0 ff_proj up_proj" in each
    assert each.count("  0.2  ") == 8
    assert "what is by chance" in text or "by chance" in text


def test_json_has_every_measure(model: Path, qdc: Command) -> None:
    data = json.loads(qdc("inspect-calibration", model, *FEW, "--ratios", "0.5,1", "--json"))
    assert (data["samples"], data["length"], data["ratios"]) == (4, 24, [0.5, 1.0])
    stages = data["stages"]
    assert len(stages) == 2 * 4 * 3
    other, half, all_masked = stages[:3]
    assert (other["ratio"], half["ratio"], all_masked["ratio"]) == (0, 0.5, 1)
    assert other["masked"] is None
    assert all_masked["visible"] is None
    assert all_masked["masked_tokens"] == 96
    assert 30 < half["masked_tokens"] < 66
    assert set(half["every"]) == {
        "trace", "overlap", "distance", "divergence", "divergence_high"
    }  # fmt: skip
    # at the first stage a visible token does not know of the masks
    assert half["visible"]["distance"] < half["masked"]["distance"]


def test_the_shift_grows_with_the_ratio(model: Path, qdc: Command) -> None:
    data = json.loads(qdc("inspect-calibration", model, *FEW, "--ratios", "0.1,0.5,0.9", "--json"))
    first = [row["every"]["distance"] for row in data["stages"][1:4]]
    assert first == sorted(first)
    again = json.loads(qdc("inspect-calibration", model, *FEW, "--ratios", "0.1,0.5,0.9", "--json"))
    assert again == data


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--samples", 0), "--samples 0 is refused"),
        (("--length", 0), "--length 0 is refused"),
        (("--length", 65), "samples of 65 tokens are asked for, the model takes 64"),
        (("--top", 500), "need 500 for the eigenspace"),
        (("--ratios", "0.5,2"), "--ratios '0.5,2' leaves 0..1"),
        (("--chat-fields", "q,a"), "--chat-fields is given, and no file to read it from"),
        (("--calibration", "gone.txt"), "there is no such file"),
    ],
)
def test_mistakes_are_told(
    arguments: tuple[object, ...], expected: str, model: Path, refused: Command
) -> None:
    assert expected in refused("inspect-calibration", model, *arguments)


def test_an_artifact_is_refused(artifact: Path, refused: Command) -> None:
    assert "error[QDC" in refused("inspect-calibration", artifact, *FEW)
