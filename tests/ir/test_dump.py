from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings

from qdc.errors import InvalidDump
from qdc.ir.annotations import Kept, Moment, Salience
from qdc.ir.dump import from_bytes, read, to_bytes
from qdc.ir.graph import LayerGraph
from qdc.ir.lines import VERSION
from qdc.ir.opaque import Opaque
from qdc.ir.printer import render
from tests.ir.dumps import SMALL, TAGS, content, repacked, small
from tests.ir.generated import KNOWN, graphs


@settings(max_examples=40)
@given(graphs())
def test_round_trip(graph: LayerGraph) -> None:
    data = to_bytes(graph)
    found = from_bytes(data, KNOWN)
    assert found.structure == graph.structure
    assert found.after == graph.after
    assert to_bytes(found) == data
    assert [[n for n in some if not isinstance(n, Opaque)] for some in content(found)] == [
        [n for n in some if not isinstance(n, Opaque)] for some in content(graph)
    ]
    assert render(found) == render(graph)


def test_the_small_dump_round_trips_with_full_precision() -> None:
    found = from_bytes(SMALL, TAGS)
    assert content(found) == content(small())
    moment, salience = found.require("h0.gate", Moment), found.require("h0.down", Salience)
    assert moment.masked == 0.1 + 0.2
    assert salience.blocks == (1 / 3, 5e-324)


@settings(max_examples=50)
@given(graphs())
def test_unknown_tags_are_kept_byte_for_byte(graph: LayerGraph) -> None:
    data = to_bytes(graph)
    blind = from_bytes(data, {})
    assert all(isinstance(note, Opaque) for some in content(blind) for note in some)
    assert to_bytes(blind) == data


def test_an_unknown_tag_is_named_and_understood_again_later() -> None:
    known = {tag: kind for tag, kind in TAGS.items() if tag != "moment"}
    blind = from_bytes(SMALL, known)
    assert blind.get("h0.gate", Moment) is None
    assert "@moment    unknown tag, 4 fields kept" in render(blind)
    assert content(from_bytes(to_bytes(blind), TAGS)) == content(small())


def test_equal_graphs_give_equal_bytes() -> None:
    assert to_bytes(small()) == SMALL
    other = small()
    other.annotate("head", Kept(reason="another"))
    assert to_bytes(other) != SMALL


@pytest.mark.parametrize("version", [VERSION + 1, 2**64 - 1, 0, -1])
def test_other_versions_are_refused(version: int) -> None:
    with pytest.raises(InvalidDump, match=f"version {version}, this qdc reads 1..{VERSION}") as e:
        from_bytes(repacked(lambda data: data.update(version=version)), TAGS)
    assert "update qdc" in e.value.help


def test_a_newer_version_is_refused_before_its_content_is_looked_at() -> None:
    data = msgpack.packb({"format": "qdc-ir", "version": VERSION + 1, "layers": 3})
    with pytest.raises(InvalidDump, match="version"):
        from_bytes(data, TAGS)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "02_sensitivity.qdc"
    path.write_bytes(SMALL)
    assert content(read(path, TAGS)) == content(small())


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "02_sensitivity.qdc"
    with pytest.raises(InvalidDump, match="No such file") as caught:
        read(path, TAGS)
    assert caught.value.where == (str(path),)
    path.write_bytes(repacked(lambda data: data.update(version=VERSION + 1)))
    with pytest.raises(InvalidDump, match="version") as caught:
        read(path, TAGS)
    assert caught.value.where == (str(path),)
    assert "update qdc" in caught.value.help
    with pytest.raises(InvalidDump, match="cannot read"):
        read(tmp_path, TAGS)


def test_a_giant_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.qdc"
    path.write_bytes(SMALL)
    monkeypatch.setattr("qdc.ir.dump.LARGEST", len(SMALL) - 1)
    with pytest.raises(InvalidDump, match="larger than"):
        read(path, TAGS)
