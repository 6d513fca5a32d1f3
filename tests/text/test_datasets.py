"""Dataset folders: save_to_disk, parquet and jsonl, without network, cache or code."""

import builtins
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from qdc.errors import InvalidCalibration, QdcError
from qdc.text.records import Dialogue, Fields, Message
from qdc.text.source import read_source, read_text
from qdc.text.stored import Documents

RECORDS: list[dict[str, Any]] = [
    {"text": f"document {number}", "q": "why?", "a": str(number)} for number in range(5)
]
for each in RECORDS:
    each["messages"] = [
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": each["a"]},
    ]


def save(folder: Path, records: list[dict[str, Any]] = RECORDS, shards: int = 2) -> Path:
    """Write what ``Dataset.save_to_disk`` writes: arrow streams and a state."""
    pyarrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    names = [f"data-{n:05}-of-{shards:05}.arrow" for n in range(shards)]
    for number, name in enumerate(names):
        table = pyarrow.Table.from_pylist(records[number::shards])
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_saved_dataset(tmp_path: Path) -> None:
    folder = save(tmp_path / "corpus")
    source = read_text(folder)
    assert source.name == "corpus"
    assert sorted(source.documents) == [record["text"] for record in RECORDS]
    assert list(source.documents[1:3]) == [source.documents[1], source.documents[2]]
    chat = read_source(folder, Fields.parse(chat="q,a"))
    assert Dialogue((Message("user", "why?"),), "3") in list(chat.dialogues)
    turns = read_source(folder, Fields.parse(chat="messages"))
    assert sorted(turns.dialogues) == sorted(chat.dialogues)


def test_of_several_splits_one_is_asked_for(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / "corpus" / split)
    (tmp_path / "corpus" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InvalidCalibration, match="has 2 splits, need one: train, test") as caught:
        read_text(tmp_path / "corpus")
    assert caught.value.help.endswith("corpus/train")
    (tmp_path / "corpus" / "dataset_dict.json").write_text('{"splits": ["test", "../x"]}')
    assert len(read_text(tmp_path / "corpus").documents) == 5


def test_rows_that_hold_nothing_are_counted(tmp_path: Path) -> None:
    """Null and blank ones, whatever is drawn; places of the others are those of the file."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = ["one", None, " \n", "", "zwölf", "\u3000"]
    for kind in (pyarrow.string(), pyarrow.large_string()):
        table = pyarrow.table({"text": pyarrow.array(texts, kind), "id": [1, 2, 3, 4, None, 6]})
        parquet.write_table(table, str(tmp_path / "a.parquet"))
        source = read_text(tmp_path / "a.parquet")
        assert list(source.documents) == ["one", "zwölf"]
        assert source.left_out == "4 of 6 records hold nothing"
        assert isinstance(source.documents, Documents)
        assert (source.documents.ends.tolist(), source.documents.characters) == ([3, 8], 8)
    with pytest.raises(InvalidCalibration, match="'id' holds a number, need text") as caught:
        read_text(tmp_path / "a.parquet", "id")
    assert caught.value.where == ("a.parquet row 0",)


def test_parquet_files(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    (tmp_path / "p" / "data").mkdir(parents=True)
    for number in range(2):
        table = pyarrow.Table.from_pylist(RECORDS[number::2])
        parquet.write_table(table, str(tmp_path / "p" / "data" / f"train-{number}.parquet"))
    assert sorted(read_text(tmp_path / "p").documents) == [record["text"] for record in RECORDS]
    with pytest.raises(InvalidCalibration, match="the field 'txt' is missing") as caught:
        read_text(tmp_path / "p", "txt")
    assert "did you mean text" in caught.value.help


def test_jsonl_files_need_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pyarrow(monkeypatch)
    for name, records in (("b.jsonl", RECORDS[3:]), ("a.jsonl", RECORDS[:3])):
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
    source = read_text(tmp_path)
    assert list(source.documents) == [record["text"] for record in RECORDS]
    whole = hashlib.sha256()
    for name in ("a.jsonl", "b.jsonl"):
        whole.update(name.encode() + b"\0" + (tmp_path / name).read_bytes())
    assert source.digest == whole.hexdigest()


def test_without_the_library_the_command_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pyarrow(monkeypatch)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(QdcError, match="need pyarrow, which is not installed") as caught:
        read_text(tmp_path)
    assert "pip install 'qdc-compiler[data]'" in caught.value.help


@pytest.mark.parametrize("name", ["a.parquet", "data.arrow"])
def test_a_damaged_dataset_is_refused(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(b"no such thing" * 9)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    if name == "a.parquet":
        (tmp_path / "state.json").unlink()
    with pytest.raises(InvalidCalibration, match="the dataset cannot be read"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("{", "is no JSON"),
        ("[]", "found no record"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "names files that are not in the folder"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "names files that are not in the folder"),
        ('{"_data_files": [3, {}]}', "names files that are not in the folder"),
    ],
)
def test_a_hostile_state_is_refused(tmp_path: Path, state: str, expected: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "a.arrow").write_bytes(b"")
    (tmp_path / "d" / "state.json").write_text(state)
    with pytest.raises(InvalidCalibration, match=expected):
        read_text(tmp_path / "d")


@pytest.mark.parametrize("damage", ["no UTF-8", "beyond the data"])
def test_hostile_text_is_refused(tmp_path: Path, damage: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    size, file = 12345, tmp_path / "d.arrow"
    table = pyarrow.table({"text": ["x" * size]})
    with pyarrow.ipc.new_stream(str(file), table.schema) as stream:
        stream.write_table(table)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}')
    assert len(read_text(tmp_path).documents[0]) == size
    good = b"xxx" if damage == "no UTF-8" else struct.pack("<2i", 0, size)
    bad = b"x\xffx" if damage == "no UTF-8" else struct.pack("<2i", 0, 1 << 30)
    before, _, after = file.read_bytes().rpartition(good)
    file.write_bytes(before + bad + after)
    with pytest.raises(InvalidCalibration, match="the dataset cannot be read"):
        read_text(tmp_path)


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    with pyarrow.ipc.new_file(str(tmp_path / "d.arrow"), table.schema) as file:
        file.write_table(table)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "d.arrow"}]}')
    with pytest.raises(InvalidCalibration, match="found no record, need at least 1"):
        read_text(tmp_path)


def without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return usual(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_a_disk_is_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdc.text.datasets.MOST_FILES", 2)
    for name in ("a.jsonl", "b.txt"):
        (tmp_path / name).write_text('{"text": "x"}\n', encoding="utf-8")
    assert len(read_text(tmp_path).documents) == 1
    (tmp_path / "c.txt").write_text("x", encoding="utf-8")
    with pytest.raises(InvalidCalibration, match="more than 2 files"):
        read_text(tmp_path)
