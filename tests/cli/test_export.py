"""``qdc export`` from the command line."""

import json
from pathlib import Path

from qdc.checkpoint.folder import Checkpoint
from tests.cli.conftest import Command


def test_says_what_was_written_and_proved(artifact: Path, tmp_path: Path, qdc: Command) -> None:
    text = qdc("export", artifact, "-o", tmp_path / "dense", "--verify")
    lines = text.splitlines()
    assert lines[0] == f"wrote {tmp_path / 'dense'}"
    assert "21 tensors equal the artifact's, rounded to bf16" in text
    rows = [line.split() for line in lines[-2:]]
    assert [(row[-3], row[-2]) for row in rows] == [("128", "0"), ("64", "0")]
    assert {header.dtype for header in Checkpoint(tmp_path / "dense").headers.values()} == {"bf16"}


def test_json_is_the_report(artifact: Path, tmp_path: Path, qdc: Command) -> None:
    out = tmp_path / "dense"
    data = json.loads(qdc("export", artifact, "-o", out, "--dtype", "f32", "--json"))
    assert data["out"] == str(out)
    assert data["tensors"] == len(Checkpoint(out).headers)
    assert data["verification"] is None


def test_mistakes_are_refused(
    artifact: Path, model: Path, tmp_path: Path, refused: Command
) -> None:
    out = tmp_path / "dense"
    assert "known: dense, gguf" in refused("export", artifact, "-o", out, "--format", "awq")
    taken = refused("export", artifact, "-o", out, "--format", "gguf", "--dtype", "bf16")
    assert "it has f16, q8_0" in taken
    packed = refused("export", artifact, "-o", out, "--format", "compressed-tensors")
    assert "codec multi-binary" in packed
    assert "--passes engine" in packed
    inside = artifact / "a.gguf"
    assert "lie in each other" in refused("export", artifact, "-o", inside, "--format", "gguf")
    assert "plain checkpoint" in refused("export", model, "-o", out)
    assert "lie in each other" in refused("export", artifact, "-o", artifact, "--force")
    assert not out.exists()
