"""``qdc verify``, and what other commands say of an artifact whose files have changed."""

import json
import shutil
from pathlib import Path

import pytest

from qdc.cli import run
from tests.cli.conftest import Command
from tests.support.artifacts import unsealed
from tests.support.commands import python

SHARD = "model-00001-of-00003.safetensors"


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(bytes(data))


@pytest.fixture
def damaged(artifact: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(artifact, tmp_path / "damaged"))
    flip(copy / SHARD)
    return copy


def test_a_whole_artifact(artifact: Path, qdc: Command) -> None:
    lines = qdc("verify", artifact).splitlines()
    assert lines[0] == f"{artifact} is as it was written"
    assert lines[1].split()[:6] == ["8", "files", "have", "been", "compared,", "and"]
    assert len(lines) == 2
    found = json.loads(qdc("verify", artifact, "--json"))
    assert (found["whole"], found["files"], found["damaged"], found["unverified"]) == (
        True, 8, [], [],
    )  # fmt: skip
    assert found["tensors"] > 20
    assert found["report"] is None


def test_a_damaged_artifact(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(damaged / "tokenizer.json", 40)
    (damaged / "config.json").unlink()
    (damaged / "notes.txt").write_text("mine")
    assert run(["verify", str(damaged)]) == 1
    out, error = capsys.readouterr()
    assert error == ""
    assert out.splitlines()[0] == f"{damaged} is damaged, 3 files"
    for text in (f"damaged   {SHARD}\n", "damaged   config.json\n", "no digest notes.txt\n"):
        assert f"  {text}" in out
    assert run(["verify", str(damaged), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["whole"]
    assert found["damaged"] == [
        {"file": "config.json", "problems": ["no such file or directory"]},
        {"file": SHARD, "problems": ["not as it was written"]},
        {"file": "tokenizer.json", "problems": ["not as it was written"]},
    ]
    assert found["unverified"] == ["notes.txt"]


def test_tensors_of_a_damaged_file_are_named(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(damaged)]) == 1
    assert "is not the tensor that was compiled" in capsys.readouterr().out


def test_what_is_no_artifact(model: Path, tmp_path: Path, refused: Command) -> None:
    assert "is no folder" in refused("verify", tmp_path / "nowhere")
    assert "has neither ir.qdc nor qdc.sha256" in refused("verify", model)


@pytest.mark.parametrize(
    "command",
    [
        ("run", "FOLDER", "for <mask>"),
        ("generate", "FOLDER", "for", "--length", "4"),
        ("eval", "FOLDER", "--text", "TEXT", "--length", "8", "--windows", "2", "--seeds", "1"),
        ("export", "FOLDER", "-o", "OUT"),
    ],
    ids=lambda found: found[0],
)
def test_commands_refuse_it_unless_told_otherwise(
    command: tuple[str, ...],
    damaged: Path,
    text: Path,
    tmp_path: Path,
    refused: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"FOLDER": str(damaged), "TEXT": str(text), "OUT": str(tmp_path / "dense")}
    arguments = [places.get(each, each) for each in command]
    message = refused(*arguments)
    assert "a file is not as the artifact was written" in message
    assert SHARD in message
    assert f"qdc verify {damaged}" in message
    assert run([*arguments, "--no-verify"]) == 0
    assert "digest" not in capsys.readouterr().err


def test_a_changed_tokenizer_is_refused(artifact: Path, tmp_path: Path, refused: Command) -> None:
    copy = Path(shutil.copytree(artifact, tmp_path / "copy"))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 3}))
    assert "tokenizer_config.json" in refused("run", copy, "for <mask>")


def test_show_and_opt_refuse_a_changed_dump(
    artifact: Path, tmp_path: Path, refused: Command
) -> None:
    copy = Path(shutil.copytree(artifact, tmp_path / "copy"))
    data = (copy / "ir.qdc").read_bytes()
    (copy / "ir.qdc").write_bytes(data.replace(b"abmp-allocate", b"abmp-allocatf"))
    assert "ir.qdc" in refused("show", copy)
    assert "ir.qdc" in refused("opt", copy, "--passes", "abmp-allocate")
    assert run(["show", str(copy / "ir.qdc")]) == 0  # a file is what it is


def test_an_artifact_of_before_has_a_note(
    artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    older = unsealed(artifact, tmp_path / "older")
    note = f"{older} has no digests (qdc.sha256): its files are not verified"
    assert run(["run", str(older), "for <mask>"]) == 0
    assert caplog.messages == [note]
    capsys.readouterr()
    assert python("-m", "qdc", "show", older).stderr == f"{note}\n"
    assert run(["verify", str(older)]) == 0
    out = capsys.readouterr().out
    assert "without digests of its files" in out
    assert f"  no digest {SHARD}\n" in out
