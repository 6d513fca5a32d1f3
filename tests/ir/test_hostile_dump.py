import copy
import math
import re
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.errors import InvalidDump
from qdc.ir.dump import from_bytes
from qdc.ir.opaque import DEEPEST
from tests.ir.dumps import SMALL, TAGS, accepted, node, note, repacked


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
    "a number as text": (lambda d: note(d, "moment").update(tokens="8"), "valid integer"),
    "a truth value as a number": (lambda d: note(d, "moment").update(masked=True), "valid number"),
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
            holder[key] = copy.deepcopy(data.draw(values))
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


@pytest.mark.parametrize("data", [b"", b"\x85\xa6format\xa3qdc", b"\x93\x01\x02\x03"])
def test_a_file_that_is_no_dump_says_where_dumps_come_from(data: bytes) -> None:
    with pytest.raises(InvalidDump, match="no qdc IR dump") as caught:
        from_bytes(data, TAGS)
    assert "--dump-after" in caught.value.help
