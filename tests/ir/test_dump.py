import itertools
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.errors import InvalidDump
from qdc.ir.annotations import Annotation, Factor, Kept, Moment, Orders, Packed, Salience
from qdc.ir.dump import from_bytes, read, to_bytes
from qdc.ir.graph import LayerGraph
from qdc.ir.lines import VERSION
from qdc.ir.opaque import Opaque
from qdc.ir.printer import render
from qdc.ir.types import BYTES, TensorRef
from tests.ir.dumps import SMALL, TAGS, content, repacked, small
from tests.support.graphs import two_blocks

SIZES = {"h0.gate": (16, 8), "h0.up": (16, 8), "h0.down": (8, 16), "head": (1000, 8)}

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
names = st.text(min_size=1, max_size=20)
counts = st.integers(1, 2**63)
positive = st.floats(0, allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@st.composite
def references(draw: st.DrawFn, *shape: int) -> TensorRef:
    return TensorRef(
        name=draw(names),
        dtype=draw(st.sampled_from(sorted(BYTES))),
        shape=shape or draw(st.lists(st.integers(0, 9), max_size=3).map(tuple)),
        digest=draw(digests),
    )


@st.composite
def notes(draw: st.DrawFn, rows: int, columns: int) -> Annotation:
    """Any annotation that fits a linear."""
    cuts = draw(st.sets(st.integers(1, columns - 1), max_size=5))
    edges = [0, *sorted(cuts), columns]
    widths = tuple(b - a for a, b in itertools.pairwise(edges))
    many = st.lists(references(), min_size=1, max_size=3).map(tuple)
    stored = draw(many)
    made: list[Callable[[], Annotation]] = [
        lambda: Kept(reason=draw(st.text())),
        lambda: Moment(
            tensor=draw(references(columns, columns)),
            samples=draw(counts),
            tokens=draw(counts),
            masked=draw(st.floats(0, 1)),
        ),
        lambda: Factor(
            tensor=draw(references(columns, columns)),
            damp=draw(positive),
            attempts=draw(st.integers(0, 9)),
            dead=tuple(draw(st.sets(st.integers(0, columns - 1)))),
        ),
        lambda: Salience(blocks=tuple(draw(positive) for _ in widths), widths=widths),
        lambda: Orders(blocks=tuple(draw(st.integers(1, 4)) for _ in widths), widths=widths),
        lambda: Packed(
            tensors=stored,
            suffixes=tuple(draw(names) for _ in stored),
            payload_bits=draw(st.integers(0, 2**40)),
            weights=rows * columns,
        ),
        lambda: Opaque(
            unknown_tag=draw(st.from_regex(r"\Ax-[a-z0-9]{1,8}\Z")),
            data=draw(st.dictionaries(st.text(max_size=5), plain, max_size=3)),
        ),
    ]
    return draw(st.sampled_from(made))()


@st.composite
def graphs(draw: st.DrawFn) -> LayerGraph:
    """Two blocks with any annotations on four of their linears."""
    graph = two_blocks()
    for name, (rows, columns) in SIZES.items():
        for note in draw(st.lists(notes(rows, columns), max_size=4)):
            graph.annotate(name, note)
    graph.after = draw(st.text(max_size=30))
    return graph


@settings(max_examples=100)
@given(graphs())
def test_round_trip(graph: LayerGraph) -> None:
    data = to_bytes(graph)
    found = from_bytes(data, TAGS)
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
