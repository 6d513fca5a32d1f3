"""Files that hold records: whatever the suffix says, the same records come out."""

import hashlib
import json
from pathlib import Path

import pytest

from qdc.errors import InvalidCalibration
from qdc.text.records import Dialogue, Fields, Message
from qdc.text.source import read_source, read_text

TEXTS = ('one, "quoted"\nand a line', "two é\u2028", "three")
RECORDS: list[dict[str, object]] = [
    {"id": n, "text": text, "q": "why?", "a": str(n)} for n, text in enumerate(TEXTS)
]


def write(folder: Path, suffix: str, records: list[dict[str, object]] = RECORDS) -> Path:
    """The records in the form that the suffix names."""
    path = folder / f"corpus{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif suffix in (".csv", ".tsv"):
        between = "," if suffix == ".csv" else "\t"
        rows: list[list[object]] = [
            list(records[0]),
            *(list(record.values()) for record in records),
        ]
        doubled = (
            ["" if cell is None else str(cell).replace('"', '""') for cell in row] for row in rows
        )
        lines = (between.join(f'"{cell}"' for cell in row) for row in doubled)
        path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    else:
        path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".json", ".JSON", ".csv", ".tsv", ".parquet"])
def test_records_of_every_form(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path, suffix)
    source = read_text(path)
    assert tuple(source.documents) == TEXTS
    assert source.name == path.name
    assert source.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    chat = read_source(path, Fields.parse(chat="q,a"))
    assert list(chat.dialogues)[1] == Dialogue((Message("user", "why?"),), "1")
    with pytest.raises(InvalidCalibration, match="the field 'txt' is missing") as caught:
        read_text(path, field="txt")
    assert "did you mean text" in caught.value.help


@pytest.mark.parametrize("suffix", [".json", ".csv", ".tsv", ".parquet"])
def test_null_records_are_skipped_and_counted(suffix: str, tmp_path: Path) -> None:
    nothing: dict[str, object] = {"id": 9, "text": None, "q": "why?", "a": "9"}
    mute: dict[str, object] = {"id": 9, "text": "four", "q": "why?", "a": None}
    path = write(tmp_path, suffix, [RECORDS[0], nothing, *RECORDS[1:], mute])
    source = read_text(path)
    assert tuple(source.documents) == (*TEXTS, "four")
    assert (source.skipped, source.left_out) == (1, "1 of 5 records hold nothing")
    chat = read_source(path, Fields.parse(chat="q,a"))
    assert [each.answer for each in chat.dialogues] == ["0", "9", "1", "2"]
    assert chat.skipped == 1
    with pytest.raises(InvalidCalibration, match=r"the file holds no text|found no record"):
        read_text(write(tmp_path, suffix, [nothing]))


def test_blank_and_null_lines_are_told_apart_from_faults(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('null\n{"text": "x"}\n\n{"text": " "}\n{"text": null, "n": 1}\n')
    source = read_text(path)
    assert (source.documents, source.skipped) == (("x",), 3)
    assert read_text(None).left_out == ""
    path.write_text('{"n": 1}')
    with pytest.raises(InvalidCalibration, match="the field 'text' is missing"):
        read_text(path)


def test_json_may_hold_lines_or_one_record(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    path.write_text("\n\n".join(map(json.dumps, RECORDS)))
    assert tuple(read_text(path).documents) == TEXTS
    path.write_text(json.dumps(RECORDS[0], indent=1))
    assert tuple(read_text(path).documents) == TEXTS[:1]


def test_a_cell_may_hold_a_whole_document(tmp_path: Path) -> None:
    path = tmp_path / "corpus.csv"
    path.write_text(f"text,n\n{'x' * 200_000},1\n")
    assert read_text(path).documents == ("x" * 200_000,)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", "", "the file holds no text"),
        ("a.json", "[]", "the file holds no text"),
        ("a.json", '[{"text": "x"},]', "no valid JSON at column"),
        ("a.json", '{"text": "x"}\n{"text": }', "no valid JSON at column 10"),
        ("a.json", "[" * 100_000, "the JSON is nested more than 100 deep"),
        ("a.json", '["x"]', r"found text, need an object with the field 'text'"),
        ("a.csv", "", "the file holds no text"),
        ("a.csv", "text,n\n", "the file holds no text"),
        ("a.csv", "text,n\nx,1\ny\n", "found 1 cells, need 2"),
        ("a.csv", "text,text\nx,1\n", "the name 'text' more than once"),
        ("a.csv", 'text\n"x', "no table that can be read"),
        ("a.tsv", "a,b\nx,y\n", "the field 'text' is missing"),
    ],
)
def test_what_is_no_file_of_records(name: str, content: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InvalidCalibration, match=told):
        read_text(path)


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    with pytest.raises(InvalidCalibration, match="there is no such file"):
        read_text(path)
    path.write_text("x")
    with pytest.raises(InvalidCalibration, match="the dataset cannot be read"):
        read_text(path)
