"""The turns of a conversation, read from a file; what is wrong with it is named by its place."""

import json
from pathlib import Path

import pytest

from qdc.errors import QdcError
from qdc.text.conversation import read_turns
from qdc.text.records import Message

TURNS = [Message("system", "be brief"), Message("user", "hello"), Message("assistant", "hi\n")]
PLAIN = [turn._asdict() for turn in TURNS]


def write(folder: Path, text: str, name: str = "chat.jsonl") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def lines(entries: list[object]) -> str:
    return "\n".join(map(json.dumps, entries)) + "\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (lines(list(PLAIN)), "chat.jsonl"),
        (lines([PLAIN]), "chat.jsonl"),
        (lines([{"messages": PLAIN, "id": 1}]), "chat.jsonl"),
        (json.dumps(PLAIN, indent=1), "chat.json"),
        (json.dumps({"messages": PLAIN}, indent=1), "chat.json"),
    ],
)
def test_forms(text: str, name: str, tmp_path: Path) -> None:
    assert read_turns(write(tmp_path, text, name)) == TURNS


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        (lines([PLAIN[0], {"role": "user"}]), "'content' is missing", "chat.jsonl line 2"),
        (lines([PLAIN[0], {"role": "bot", "content": ""}]), "'role' holds 'bot'", "line 2"),
        (lines([PLAIN[0], {"role": "user", "content": 3}]), "'content' holds a number", "line 2"),
        (lines([{"messages": [PLAIN[0], 7]}]), "found a number", "line 1 message 2"),
        (lines([PLAIN[0], 'x']) , "found text, need an object", "line 2"),
        (lines([{"messages": PLAIN}] * 2), "several conversations", "line 1"),
        (lines([PLAIN, PLAIN]), "several conversations", "line 1"),
        (lines([PLAIN[0]]) + "{", "no valid JSON", "line 2"),
    ],
)  # fmt: skip
def test_faults(text: str, what: str, place: str, tmp_path: Path) -> None:
    with pytest.raises(QdcError, match=what) as caught:
        read_turns(write(tmp_path, text))
    assert caught.value.where[0].endswith(place)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(QdcError, match="cannot read the turns: no such file"):
        read_turns(tmp_path / "none.jsonl")
    with pytest.raises(QdcError, match=r"chat.txt is no .jsonl or .json file"):
        read_turns(write(tmp_path, "x", "chat.txt"))
    (tmp_path / "bad.jsonl").write_bytes(b"\xff")
    with pytest.raises(QdcError, match="not UTF-8"):
        read_turns(tmp_path / "bad.jsonl")
