import copy
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.errors import InvalidDump
from qdc.ir.annotations import (
    BUILT_IN,
    DEEPEST,
    Annotation,
    Factor,
    Kept,
    Moment,
    Opaque,
    Orders,
    Packed,
    Salience,
)
from qdc.ir.dump import from_bytes, read, to_bytes
from qdc.ir.graph import LayerGraph
from qdc.ir.printer import VERSION, as_data, render
from qdc.ir.types import BYTES, TensorRef
from tests.support.graphs import annotated, ref, two_blocks

TAGS = {kind.tag: kind for kind in BUILT_IN}
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


def small() -> LayerGraph:
    """A graph that carries one annotation of every kind."""
    packed = Packed(tensors=(ref("p", 4),), suffixes=("p",), payload_bits=256, weights=128)
    graph = annotated(
        two_blocks(),
        h0__gate=Moment(tensor=ref("m", 8, 8), samples=4, tokens=64, masked=0.1 + 0.2),
        h0__up=Orders(blocks=(1, 3), widths=(4, 4), budget=2),
        h0__down=Salience(blocks=(1 / 3, 5e-324), widths=(8, 8)),
        h1__gate=packed,
        h1__up=Factor(tensor=ref("f", 8, 8), damp=0.01, attempts=2, dead=(1,)),
        h1__down=Opaque(unknown_tag="future", data={"a": [1, 2.5, None, b"\xff"]}),
        head=Kept(reason="outside the repeated blocks"),
    )
    graph.after = "calibrate-mcs,sensitivity"
    return graph


SMALL = to_bytes(small())


def content(graph: LayerGraph) -> list[list[Annotation]]:
    return [list(graph.annotations(node.name).values()) for node in graph]


def repacked(change: Callable[[dict[str, Any]], None]) -> bytes:
    """The small dump after ``change`` has edited its plain data."""
    data = msgpack.unpackb(SMALL)
    change(data)
    packed: bytes = msgpack.packb(data)
    return packed


def accepted(data: bytes) -> bool:
    """Whether the bytes give a graph; if so, everything that is done with one must work."""
    try:
        graph = from_bytes(data, TAGS)
    except InvalidDump:
        return False
    assert render(graph)
    assert as_data(graph)
    again = to_bytes(graph)
    assert to_bytes(from_bytes(again, TAGS)) == again
    return True


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


def test_every_prefix_is_refused() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(InvalidDump):
            from_bytes(SMALL[:length], TAGS)


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(InvalidDump, match="no qdc IR dump"):
        from_bytes(SMALL + b"\x00", TAGS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        b"\x00",
        b"\x90",
        b"\x80",
        msgpack.packb({"format": "qdc"}),
        msgpack.packb({"format": "other", "version": 1}),
        msgpack.packb({"format": "qdc-ir", "version": True}),
        msgpack.packb({"format": "qdc-ir", "version": "1"}),
        msgpack.packb({"format": "qdc-ir", "version": 1.0}),
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\xc1",
        b"\x81\xc0\xc0",
        b"\x81\x90\xc0",
        b"\xc7\x03\xff123",
        b"\xa1\xff",
    ],
)
def test_other_bytes_are_no_dump(data: bytes) -> None:
    with pytest.raises(InvalidDump, match="no qdc IR dump"):
        from_bytes(data, TAGS)


@pytest.mark.parametrize("version", [VERSION + 1, 2**64 - 1, 0, -1])
def test_other_versions_are_refused(version: int) -> None:
    with pytest.raises(InvalidDump, match=f"version {version}, this qdc reads 1..{VERSION}") as e:
        from_bytes(repacked(lambda data: data.update(version=version)), TAGS)
    assert "update qdc" in e.value.help


def test_a_newer_version_is_refused_before_its_content_is_looked_at() -> None:
    data = msgpack.packb({"format": "qdc-ir", "version": VERSION + 1, "layers": 3})
    with pytest.raises(InvalidDump, match="version"):
        from_bytes(data, TAGS)


def node(data: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = data["structure"]["nodes"][index]
    return found


def note(data: dict[str, Any], tag: str) -> dict[str, Any]:
    found: dict[str, Any] = next(n[2] for n in data["annotations"] if n[1] == tag)
    return found


def deep(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


Change = Callable[[dict[str, Any]], None]
HOSTILE: dict[str, tuple[Change, str]] = {
    "two nodes of one name": (
        lambda d: d["structure"]["nodes"].append(node(d, 1)),
        "two nodes have one name",
    ),
    "a cycle": (lambda d: node(d, 3).update(inputs=["h0.gate", "h0.down"]), "does not come before"),
    "a node that reads itself": (lambda d: node(d, 3).update(inputs=["h0.mul"]), "h0.mul"),
    "an input that is no node": (lambda d: node(d, 3).update(inputs=["nowhere"]), "nowhere"),
    "a name with a path": (lambda d: node(d, 0).update(name="../../etc/passwd"), "pattern"),
    "an endless name": (lambda d: node(d, 0).update(name="x" * 100_000), "at most 256"),
    "an annotation on no node": (
        lambda d: d["annotations"].append(["x" * 100_000, "kept", {"reason": ""}]),
        "on no node",
    ),
    "two annotations of one slot": (
        lambda d: d["annotations"].append(["head", "kept", {"reason": ""}]),
        "two annotations",
    ),
    "two unknown annotations of one tag": (
        lambda d: d["annotations"].append(["h1.down", "future", {}]),
        "two annotations",
    ),
    "an annotation of four parts": (
        lambda d: d["annotations"].append(["head", "kept", {"reason": ""}, 1]),
        "not [node, tag, fields]",
    ),
    "an annotation that is no list": (lambda d: d["annotations"].append(3), "[node, tag, fields]"),
    "a tag that no class can have": (
        lambda d: d["annotations"].append(["head", "a\x1b[2J", {}]),
        "pattern",
    ),
    "an unknown field": (lambda d: note(d, "kept").update(code="os.system"), "not permitted"),
    "an unknown field of the structure": (
        lambda d: d["structure"].update(extra=1),
        "not permitted",
    ),
    "an unknown part": (lambda d: d.update(extra=1), "extra"),
    "no annotations": (lambda d: d.pop("annotations"), "annotations"),
    "annotations in a map": (lambda d: d.update(annotations={}), "annotations"),
    "no pipeline": (lambda d: d.pop("after"), "after"),
    "no structure": (lambda d: d.pop("structure"), "structure"),
    "a NaN score": (lambda d: note(d, "salience").update(blocks=[math.nan, 1.0]), "not finite"),
    "an infinite score": (lambda d: note(d, "salience").update(blocks=[math.inf, 1.0]), "finite"),
    "a NaN share": (lambda d: note(d, "moment").update(masked=math.nan), "less than or equal"),
    "an infinite damp": (lambda d: note(d, "factor").update(damp=math.inf), "finite"),
    "a huge order": (lambda d: note(d, "orders").update(blocks=[2**64 - 1, 1]), "outside 1..4"),
    "widths that cancel out": (
        lambda d: note(d, "orders").update(widths=[-4, 4]),
        "greater than 0",
    ),
    "no widths": (lambda d: note(d, "orders").update(blocks=[], widths=[]), "at least 1"),
    "a huge shape": (
        lambda d: note(d, "packed")["tensors"][0].update(shape=[2**63] * 40),
        "dimensions",
    ),
    "a huge size": (lambda d: note(d, "packed")["tensors"][0].update(shape=[2**63]), "outside 0.."),
    "a named size of a weight": (
        lambda d: node(d, 1)["parameters"][0].update(shape=["B", "L"]),
        "valid integer",
    ),
    "a weight of one dimension": (
        lambda d: node(d, 1)["parameters"][0].update(shape=[8]),
        "two-dimensional weight",
    ),
    "no weight": (lambda d: node(d, 1).update(parameters=[]), "two-dimensional weight"),
    "a digest that is none": (
        lambda d: note(d, "moment")["tensor"].update(digest="../x"),
        "pattern",
    ),
    "a broken budget": (lambda d: note(d, "orders").update(blocks=[4, 4]), "strict budget"),
    "deep nesting": (lambda d: note(d, "future").update(a=deep(DEEPEST)), "nested deeper"),
    "deeper nesting": (lambda d: note(d, "kept").update(reason=deep(400)), "valid string"),
    "a timestamp": (lambda d: note(d, "future").update(a=msgpack.Timestamp(0)), "Timestamp"),
    "an extension type": (
        lambda d: note(d, "future").update(a=msgpack.ExtType(3, b"x")),
        "ExtType",
    ),
    "a region of nothing": (
        lambda d: d["structure"]["regions"][0].update(nodes=["ghost"]),
        "not there",
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_dump_is_refused(name: str) -> None:
    change, text = HOSTILE[name]
    with pytest.raises(InvalidDump, match=re.escape(text)):
        from_bytes(repacked(change), TAGS)


Place = tuple[Any, ...]


def places(data: Any, above: Place = ()) -> list[Place]:
    """The keys that lead to every value below ``data``."""
    found: list[Place] = []
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        found.append((*above, key))
        if isinstance(value, dict | list):
            found += places(value, (*above, key))
    return found


def container(data: Any, place: Place) -> Any:
    """What holds the value at a place."""
    for key in place[:-1]:
        data = data[key]
    return data


PLAIN = msgpack.unpackb(SMALL)
OPAQUE = next(("annotations", i, 2) for i, n in enumerate(PLAIN["annotations"]) if n[1] == "future")


@pytest.mark.parametrize("value", [{"a": [{}]}, [[["x"]]], b"\xff\xfe", math.nan], ids=repr)
def test_no_field_takes_what_is_not_its_own(value: object) -> None:
    """Each field in turn; only opaque data may hold anything."""
    for place in places(PLAIN):
        data = msgpack.unpackb(SMALL)
        container(data, place)[place[-1]] = value
        if place[:3] != OPAQUE:
            assert not accepted(msgpack.packb(data)), place
        elif len(place) > 3:
            assert accepted(msgpack.packb(data)), place


numbers = [True, -1, 0, 1, 2, 2**63, 2**64 - 1, -(2**63), math.nan, math.inf, 0.5]
texts = ["", "../x", "B", "head", "h0.gate", "linear", "x" * 999, "\x00", b"", b"\xff"]
values = st.sampled_from([None, *numbers, *texts, [], {}, [1], ["a"], {"a": 1}])


@settings(max_examples=400)
@given(st.data())
def test_changed_fields_give_a_sound_graph_or_an_error(data: st.DataObject) -> None:
    changed = msgpack.unpackb(SMALL)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(changed)))
        holder, key = container(changed, place), place[-1]
        kind = data.draw(st.sampled_from(["replace", "delete", "repeat", "move"]))
        if kind == "delete":
            del holder[key]
        elif kind == "repeat" and isinstance(holder, list):
            holder.insert(data.draw(st.integers(0, len(holder))), copy.deepcopy(holder[key]))
        elif kind == "move":
            other = data.draw(st.sampled_from(places(changed)))
            holder[key] = copy.deepcopy(container(changed, other)[other[-1]])
        else:
            holder[key] = data.draw(values)
    accepted(msgpack.packb(changed))


@settings(max_examples=400)
@given(
    st.lists(
        st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 2), st.binary(min_size=1)),
        min_size=1,
        max_size=4,
    )
)
def test_changed_bytes_give_a_sound_graph_or_an_error(
    changes: list[tuple[int, int, bytes]],
) -> None:
    data = SMALL
    for place, removed, added in changes:
        data = data[:place] + added + data[place + removed :]
    accepted(data)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_give_an_error(data: bytes) -> None:
    assert not accepted(data)


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
