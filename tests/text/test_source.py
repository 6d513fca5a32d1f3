"""Reading text: what counts as a document, and every way a file can be wrong."""

import hashlib
import json
from pathlib import Path

import pytest

from qdc.errors import InvalidCalibration
from qdc.text.source import read_text


def test_embedded_text() -> None:
    """The embedded text is there, of the size announced, under a name that is no path."""
    source = read_text(None)
    assert source.name == "embedded"
    assert len(source.digest) == 64
    assert len(source.documents) > 10
    assert 400_000 < sum(map(len, source.documents)) < 600_000
    assert all(15_000 <= len(document.encode()) <= 45_000 for document in source.documents)


def test_embedded_text_is_not_held_out() -> None:
    """No embedded document is among the held-out ones."""
    held_out = Path(__file__).parents[2] / "examples" / "tiny-llada" / "heldout.jsonl"
    assert set(read_text(None).documents).isdisjoint(read_text(held_out).documents)


def test_plain_file_is_one_document(tmp_path: Path) -> None:
    """A file that is not .jsonl is one document; a byte order mark is no part of it."""
    path = tmp_path / "novel.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n\ntwo \xc3\xa9")
    source = read_text(path)
    assert source.documents == ("one\n\ntwo é",)
    assert source.name == "novel.txt"
    assert source.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_jsonl_documents(tmp_path: Path) -> None:
    """Each line is a document; blank lines and empty documents are none; U+2028 ends no line."""
    path = tmp_path / "corpus.JSONL"
    lines = ['{"text": "one"}', "", '{"text": " \\n"}', '{"text": "a\u2028b", "url": 1}\r', ""]
    path.write_bytes("\n".join(lines).encode())
    assert read_text(path).documents == ("one", "a\u2028b")


def test_field(tmp_path: Path) -> None:
    """Another field may hold the text."""
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"content": "one", "text": "two"}))
    assert read_text(path, field="content").documents == ("one",)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"", "the file holds no text\n  at    a.txt\n  help  give a UTF-8 text file"),
        ("a.txt", b" \n\t", "the file holds no text"),
        ("a.txt", b"\xef\xbb\xbf\n", "the file holds no text"),
        ("a.bin", b"ab\xe2\x82", "byte 2 is not UTF-8\n  at    a.bin"),
        ("a.jsonl", b"\n\n", "the file holds no text\n  at    a.jsonl"),
        ("a.bin", b"ab\xff", "byte 2 is not UTF-8\n  at    a.bin"),
        ("a.bin", b"ab\0c", "byte 2 is zero, this is no text\n  at    a.bin"),
        (
            "a.jsonl",
            b'{"text": "x"}\n\n{"text": ',
            "no valid JSON at column 10: expecting value\n  at    a.jsonl line 3",
        ),
        (
            "a.jsonl",
            b"[" * 100_000,
            "the JSON is nested more than 100 deep\n  at    a.jsonl line 1",
        ),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "no JSON that can be read"),
        ("a.jsonl", b"[1]", "found a list, need an object with the field 'text'"),
        ("a.jsonl", b"3", "found a number, need an object"),
        ("a.jsonl", b"null", "the file holds no text"),
        (
            "a.jsonl",
            b'{"txt": "x", "id": 1}',
            "the field 'text' is missing\n  at    a.jsonl line 1\n  help  did you mean txt?",
        ),
        ("a.jsonl", b'{"body": "x", "id": 1}', "help  known: body, id"),
        ("a.jsonl", b'{"text": 3}', "the field 'text' holds a number, need text"),
        ("a.jsonl", b'{"text": true}', "the field 'text' holds true or false, need text"),
        ("a.jsonl", b'{"text": "ab\\ud800"}', "holds half a surrogate pair at character 2"),
    ],
)
@pytest.mark.parametrize("small", [0, 1 << 22])
def test_refused(
    tmp_path: Path,
    name: str,
    content: bytes,
    expected: str,
    small: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong file is refused by name and place, without its folder, small or large."""
    monkeypatch.setattr("qdc.text.source.SMALL", small)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidCalibration) as caught:
        read_text(path)
    assert f"error[QDC303] {expected}" in str(caught.value) or expected in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert caught.value.help


def test_missing_and_folder(tmp_path: Path) -> None:
    """A missing file is named with its folder, a folder is called one."""
    with pytest.raises(InvalidCalibration, match="there is no such file") as caught:
        read_text(tmp_path / "none.txt")
    assert caught.value.where == (str(tmp_path / "none.txt"),)
    with pytest.raises(InvalidCalibration, match="found a folder, need a file"):
        read_text(tmp_path)


def test_a_field_of_plain_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.txt"
    path.write_text("words", encoding="utf-8")
    for given in (path, None):
        with pytest.raises(InvalidCalibration) as caught:
            read_text(given, "body")
        assert "'body'" in caught.value.what
