"""JSON that would take more memory than it is worth is refused before it is parsed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.artifact.journal import JOURNAL, read_journal
from qdc.artifact.writer import check_target
from qdc.checkpoint.folder import Checkpoint, read_json
from qdc.disk import LARGEST_JSON
from qdc.errors import OutputExists, QdcError
from qdc.jsontext import BOUNDS, DEEPEST, Bounds, UnfitJson, check_size, parse_json
from qdc.report.files import read_report
from qdc.serve.bodies import ChatRequest, read_body
from qdc.serve.refusals import Refused
from qdc.text.source import read_text
from qdc.text.tokenizer import load_tokenizer
from tests.support.checkpoints import write_checkpoint

MIB = 1 << 20
ROOT = Path(__file__).parents[1]
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.text('[]{},:"\\', max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)


def sizes(value: Any) -> tuple[int, int]:
    """Lists and objects, and the commas between their values."""
    if not isinstance(value, dict | list):
        return 0, 0
    inner = list(value.values()) if isinstance(value, dict) else value
    found = [sizes(each) for each in inner]
    commas = max(0, len(inner) - 1)
    return 1 + sum(a for a, _ in found), commas + sum(b for _, b in found)


@settings(max_examples=200)
@given(value=values, odd=st.booleans(), binary=st.booleans())
def test_brackets_within_texts_do_not_count(value: Any, odd: bool, binary: bool) -> None:
    plain = json.dumps(value, ensure_ascii=odd)
    text = plain.encode() if binary else plain
    containers, commas = sizes(value)
    exact = Bounds(containers, containers + commas)
    assert parse_json(text, exact) == value
    if containers:
        with pytest.raises(UnfitJson, match="lists and objects"):
            check_size(text, Bounds(containers - 1, 1000))
        with pytest.raises(UnfitJson, match="values"):
            check_size(text, Bounds(containers, containers + commas - 1))


@settings(max_examples=100)
@given(text=st.text('[]{},:"\\ \n1e', max_size=60), binary=st.booleans())
def test_whatever_it_is_it_is_read_or_refused(text: str, binary: bool) -> None:
    """And what is read is what the library reads."""
    given = text.encode() if binary else text
    try:
        expected, sound = json.loads(text), True
    except ValueError:
        expected, sound = None, False
    try:
        found = parse_json(given, Bounds(3, 6))
    except UnfitJson:
        assert not sound or sum(map(text.count, "[{,")) > 3 or '"' in text
    except ValueError:
        assert not sound
    else:
        assert (sound, found) == (True, expected)


@pytest.mark.parametrize("text", ['"' + '\\"' * 500_000, '"' * 1_000_001, '"' + "\\" * 999_999])
def test_quotes_that_nothing_closes_cost_one_walk(text: str) -> None:
    # A walk from each quote would take hours.
    with pytest.raises(ValueError, match=r"Unterminated|Extra data|Invalid"):
        parse_json(text + "[" * (BOUNDS.containers + 1))


def test_depth_is_bounded() -> None:
    for opened, closed in (("[", "]"), ('{"a":', "}")):
        deep = opened * DEEPEST + "1" + closed * DEEPEST
        assert parse_json(deep)
        for more in (1, 5000, BOUNDS.containers - DEEPEST):
            with pytest.raises(UnfitJson, match=f"nested more than {DEEPEST} deep"):
                parse_json(opened * more + deep + closed * more)


def test_a_name_with_two_values_is_refused() -> None:
    assert parse_json('{"a": {"b": 1, "b": 1}}') == {"a": {"b": 1}}
    with pytest.raises(UnfitJson, match="gives 'b' two values"):
        parse_json('{"a": {"b": 1, "b": 2}}')


def a_million_layers() -> bytes:
    layer = '{"codec":"uniform","rows":8,"columns":8,"group":8,"bits":2}'
    layers = ",".join(f'"x.{number}":{layer}' for number in range(1_000_000))
    return f'{{"quantization_config":{{"layers":{{{layers}}}}}}}'.encode()


def test_a_million_layers_are_refused_at_once() -> None:
    with pytest.raises(UnfitJson, match="holds more than 1,048,576 values"):
        parse_json(a_million_layers())


BOMBS: dict[str, Callable[[int], bytes]] = {
    "objects": lambda size: b"[" + b"{}," * (size // 3 - 1) + b"{}]",
    "one each": lambda size: b'[{"a":0}' + b',{"a":0}' * (size // 8 - 2) + b"]",
}


def read_config(folder: Path, bomb: bytes) -> object:
    (folder / "config.json").write_bytes(bomb)
    return read_json(folder / "config.json")


def read_index(folder: Path, bomb: bytes) -> object:
    write_checkpoint(folder, d_model=32, mlp_hidden_size=32, n_layers=1)
    (folder / "model.safetensors.index.json").write_bytes(bomb)
    return Checkpoint(folder)


def read_header(folder: Path, bomb: bytes) -> object:
    write_checkpoint(folder, d_model=32, mlp_hidden_size=32, n_layers=1)
    header = len(bomb).to_bytes(8, "little")
    (folder / "model.safetensors").write_bytes(header + bomb)
    return Checkpoint(folder)


def read_settings(folder: Path, bomb: bytes) -> object:
    write_checkpoint(folder, d_model=32, mlp_hidden_size=32, n_layers=1)
    (folder / "tokenizer_config.json").write_bytes(bomb)
    return load_tokenizer(folder)


def read_a_report(folder: Path, bomb: bytes) -> object:
    (folder / "report.json").write_bytes(bomb)
    return read_report(folder)


def read_a_journal(folder: Path, bomb: bytes) -> object:
    (folder / JOURNAL).write_bytes(bomb)
    return read_journal(folder)


def read_records(folder: Path, bomb: bytes) -> object:
    (folder / "a.json").write_bytes(bomb)
    return read_text(folder / "a.json")


def read_line(folder: Path, bomb: bytes) -> object:
    (folder / "a.jsonl").write_bytes(b'{"text": "x"}\n' + bomb)
    return read_text(folder / "a.jsonl")


def read_state(folder: Path, bomb: bytes) -> object:
    (folder / "state.json").write_bytes(bomb)
    return read_text(folder)


READERS = (
    read_config, read_index, read_header, read_settings, read_a_report, read_a_journal,
    read_records, read_line, read_state,
)  # fmt: skip


@pytest.mark.parametrize(
    ("reader", "bomb"), [*((reader, "objects") for reader in READERS), (read_config, "one each")]
)
def test_every_reader_refuses_a_bomb(
    reader: Callable[[Path, bytes], object], bomb: str, tmp_path: Path
) -> None:
    with pytest.raises(QdcError, match="holds more than 262,144 lists and objects"):
        reader(tmp_path, BOMBS[bomb](20 * MIB))


def test_a_server_refuses_a_bomb() -> None:
    """Which needs a --max-body above the usual one."""
    with pytest.raises(Refused) as caught:
        read_body(ChatRequest, BOMBS["objects"](20 * MIB))
    assert caught.value.status == 400
    assert "lists and objects" in str(caught.value.body)


def test_a_folder_with_a_bomb_is_no_artifact_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(BOMBS["objects"](20 * MIB))
    with pytest.raises(OutputExists):
        check_target(tmp_path, force=True)


PART = 8
"""The heaviest texts are tried at an eighth of all bounds: memory grows with the text alone."""
HEAVIEST = """
import json, resource, sys
from pathlib import Path
from qdc.checkpoint.folder import read_json
from qdc.errors import QdcError

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
most = used + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    print("taken", len(read_json(Path(sys.argv[1]))))
except QdcError as error:
    print("refused", error.what)
"""


def heaviest(name: str) -> bytes:
    """The texts within the bounds that take the most memory, a part of what may be."""
    count = BOUNDS.values // PART - 10
    room = LARGEST_JSON // PART - 100
    if name == "texts":
        pad = "é" * ((room // count - 14) // 2)
        return (
            '{"\U0001f600":0' + "".join(f',"{n:x}":"{pad}"' for n in range(count)) + "}"
        ).encode()
    assert name == "one text"
    return ('{"\U0001f600":"' + "x" * (room - 20) + '"}').encode()


@pytest.mark.parametrize("name", ["texts", "one text"])
def test_what_is_taken_takes_half_a_gigabyte_at_most(name: str, tmp_path: Path) -> None:
    """The bound of docs/reliability.md, by the address space that a process may have."""
    path = tmp_path / "config.json"
    path.write_bytes(heaviest(name))
    assert path.stat().st_size <= LARGEST_JSON // PART
    found = subprocess.run(
        [sys.executable, "-c", HEAVIEST, str(path), str(512 * MIB // PART)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert found.stdout.startswith("taken"), found.stdout + found.stderr


def test_a_hundred_thousand_layers_are_taken() -> None:
    chance = Random(0)
    layers = {
        f"model.layers.{n // 1000}.mlp.experts.{n}.up_proj": {
            "codec": "multi-binary", "rows": 768, "columns": 512, "block": 128,
            "orders": [chance.choice([1, 2, 3]) for _ in range(4)],
        }
        for n in range(100_000)
    }  # fmt: skip
    text = json.dumps({"quantization_config": {"layers": layers}}).encode()
    assert len(text) < LARGEST_JSON
    check_size(text)
