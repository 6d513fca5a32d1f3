"""Hostile text: one error with line and caret, soon and in little memory."""

import contextlib
import re
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.errors import InvalidText
from qdc.ir.dump import to_bytes
from qdc.ir.graph import LayerGraph
from qdc.ir.parser import parse, read_text
from qdc.ir.printer import as_data, render
from qdc.ir.values import DEEPEST, Misread, read_fields, write_value
from tests.ir.dumps import TAGS, small

FULL, SHORT = render(small(), full=True), render(small())


def refused(text: str) -> InvalidText:
    with pytest.raises(InvalidText) as caught:
        parse(text, TAGS)
    return caught.value


def marked(error: InvalidText) -> str:
    """The rest of the line from the caret on."""
    _, line, caret = error.help.splitlines()
    assert caret.strip() == "^"
    return line[caret.index("^") :]


def swapped(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text, old
        return text.replace(old, new, 1)

    return change


HOSTILE: dict[str, tuple[Callable[[str], str], str, str | None]] = {
    "nothing": (lambda text: "", "ends before the facts", None),
    "another file": (lambda text: "hello\n" + text, "starts with 'graph @NAME'", "hello"),
    "a newer version": (swapped("qdc-ir 1", "qdc-ir 2"), "version 2, this qdc reads 1", None),
    "no counts": (swapped("   7 linears", ""), "expected 'graph @NAME", None),
    "lost lines": (swapped("7 linears", "8 linears"), "announces 8 linears of", None),
    "no facts": (swapped("   mask 3", ""), "expected '  family NAME", None),
    "a vocabulary of none": (swapped("vocabulary 1,000", "vocabulary 0"), "greater than 0", None),
    "a node without '='": (swapped("%h0.mul  =", "%h0.mul  mul"), "expected '='", "mul "),
    "a node without a type": (swapped(": f32[B,L,1000]", ""), "expected ': dtype[shape]'", ""),
    "a bad type": (swapped(": f32[B,L,1000]", ": f32[B,L,1000"), "expected dtype", "f32[B"),
    "an unknown dtype": (swapped(": f32[B,L,1000]", ": f33[B,L]"), "unknown dtype 'f33'", None),
    "another dtype than the fields": (
        swapped("w f16[16,8]", "w f32[16,8]"),
        "the fields are not those of the line above",
        None,
    ),
    "another name than the fields": (
        swapped("length 64\n", 'length 64\n        {"name": "other"}\n'),
        "the fields are not those of the line above",
        None,
    ),
    "a weight without a shape": (
        swapped("  bias f16[16]", "  bias"),
        "dtype[shape] after bias",
        "",
    ),
    "a bad name": (swapped("%h0.mul  =", "%h0.*mul ="), "name: ", None),
    "an unknown input": (swapped("= mul %h0.gate", "= mul %h9"), "an input is no node", "%h0.mul"),
    "a node given twice": (
        lambda text: text + "  %head = add : f32[]\n",
        "two nodes have one name",
        "%head ",
    ),
    "a stage of no layer": (swapped("gate up | down", "gate | up down | "), "no layers", None),
    "a stage of a stranger": (swapped("stages gate up", "stages gate it"), "no linear it", "it "),
    "a stage of two values": (swapped("gate up | down", "gate up down"), "does not read", None),
    "a region of nothing": (lambda t: t + "  region x   stages\n", "no node follows", None),
    "an annotation of no node": (
        lambda text: re.sub(r"(  region h0.*\n)", r"\1      @kept  so\n", text, count=1),
        "stands below its node",
        "@kept",
    ),
    "an annotation given twice": (
        lambda text: text + '      @kept  so\n        {"reason": "so"}\n',
        "two annotations fill @kept",
        "kept",
    ),
    "no tag": (lambda text: text + "      @\n", "expected '@tag  text'", "@"),
    "an odd line": (lambda text: text + "   so it is\n", "expected a node", "so it is"),
    "fields twice": (lambda text: text + "        {}\n", "a second line of exact fields", None),
    "no fields in a text in full": (
        lambda text: "\n".join(line for line in text.split("\n") if '"damp"' not in line),
        "the fields of @factor are missing",
        None,
    ),
    "fields that contradict": (
        swapped("damp 0.01   2 attempts", "damp 0.02   2 attempts"),
        "the fields below say: @factor    f32[8,8]   damp 0.01   2 attempts",
        "@factor",
    ),
    "an order out of range": (
        swapped('"blocks": [1, 3]', '"blocks": [0, 4]'),
        "outside 1..4",
        None,
    ),
    "a broken budget": (swapped('"blocks": [1, 3]', '"blocks": [3, 3]'), "strict budget", None),
    "an unknown field": (swapped('"damp"', '"code": 1, "damp"'), "not permitted", "{"),
    "a field of another type": (swapped('"damp": 0.01', '"damp": [2]'), "damp: ", "{"),
    "a number as text": (swapped('"damp": 0.01', '"damp": "0.01"'), "damp: ", "{"),
    "a truth value as a number": (swapped('"damp": 0.01', '"damp": true'), "damp: ", "{"),
    "an unknown field of the graph": (
        swapped("length 64\n", 'length 64\n        {"regions": []}\n'),
        "unknown field regions",
        None,
    ),
    "fields of another node": (
        swapped('{"parameters": [{', '{"parameters": [], "x": [{'),
        "x: Extra inputs",
        None,
    ),
    "fields that rename a node": (
        swapped('{"parameters": [{"dtype"', '{"op": "mul", "parameters": [{"dtype"'),
        "the fields are not those of the line above",
        None,
    ),
    "broken fields": (swapped('"damp": 0.01', '"damp": 0.01.2'), "expected a number", "0.01.2"),
    "a key twice": (
        swapped('"damp": 0.01', '"damp": 1, "damp": 1'),
        "given twice",
        '"damp": 1, "att',
    ),
    "a huge number": (
        swapped('"damp": 0.01', f'"damp": 1{"0" * 30}'),
        "more than 64 bits",
        "100",
    ),
    "a giant number": (
        swapped('"damp": 0.01', f'"damp": {"9" * 9999}'),
        "expected a number",
        "999",
    ),
    "deep nesting": (
        swapped('"damp": 0.01', f'"damp": {"[" * 99}{"]" * 99}'),
        f"nested deeper than {DEEPEST}",
        "[",
    ),
    "a lone half of a character": (
        swapped('"reason": "', '"reason": "\\ud800'),
        "not one of",
        None,
    ),
    "a terminal code": (lambda text: text + "   \x1b[2J\n", "but as an escape", "?[2J"),
    "a tag that shows nothing": (
        swapped("@kept  ", "@\u202e     "),
        "'\\u202e' stands in no text but as an escape",
        "?",
    ),
    "a line end within a line": (swapped("%h0.mul  =", "%h0.mul\r="), "'\\r' stands in no", "?="),
    "a long line": (
        lambda text: text + f"      @kept  {'x' * (1 << 22)}\n",
        "more than 4,194,304 characters",
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_text_is_refused(name: str) -> None:
    change, what, at = HOSTILE[name]
    error = refused(change(FULL))
    assert what in error.what
    if at is not None:
        assert marked(error).startswith(at)
    assert str(error).isascii()
    assert "\x1b" not in str(error)
    assert len(str(error)) < 2000


def test_an_error_names_line_and_column() -> None:
    lines = SHORT.split("\n")
    number = next(n for n, line in enumerate(lines) if "%h0.mul" in line)
    lines[number] = lines[number].replace("=", "-", 1)
    error = refused("\n".join(lines))
    assert error.where == (f"line {number + 1}, column {lines[number].index(' - ') + 2}",)
    assert marked(error).startswith("- mul")


def test_a_part_says_that_it_is_one() -> None:
    error = refused(render(small(), only="h1.*"))
    assert "an input is no node: h0.down" in error.what
    error = refused(render(small(), only="[!h]*"))
    assert "a text of --only is a part" in error.what or "an input is no node" in error.what


def accepted(text: str) -> bool:
    """Whether the text gives a graph; if so, everything that is done with one must work."""
    try:
        found = read_text(text, TAGS)
    except InvalidText:
        return False
    graph = found.graph
    assert as_data(graph)
    assert parse(render(graph), TAGS).structure.nodes
    if found.full:
        again = render(graph, full=True)
        assert to_bytes(parse(again, TAGS)) == to_bytes(graph)
    return True


pieces = st.sampled_from([
    "%h0.gate", "h0", "|", "=", ":", "w", "f32[B,L,16]", "f16[16,8]", "{", "}", '"', "[", "]", "[]",
    "stages", "   ", "\n", "      @kept      so\n", "  %x = add : f32[]\n", "1e999", "nan", "\x00",
    "\u2028", "\\u200d", "  region r   stages q\n", '        {"a": 1}\n', "9" * 40, "graph @",
    "   in full", "é", "None", "-1", "0", "null", 'hex"ff"', "#",
])  # fmt: skip


@settings(max_examples=300)
@given(
    st.sampled_from([FULL, SHORT]),
    st.lists(
        st.tuples(st.integers(0, len(FULL)), st.integers(0, 9), pieces | st.text(max_size=3)),
        min_size=1,
        max_size=3,
    ),
)
def test_changed_text_gives_a_sound_graph_or_an_error(
    text: str, changes: list[tuple[int, int, str]]
) -> None:
    for place, removed, added in changes:
        at = place % (len(text) + 1)
        text = text[:at] + added + text[at + removed :]
    accepted(text)


@settings(max_examples=200)
@given(st.data())
def test_changed_lines_give_a_sound_graph_or_an_error(data: st.DataObject) -> None:
    lines = data.draw(st.sampled_from([FULL, SHORT])).split("\n")
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(lines) - 1))
        other = data.draw(st.integers(0, len(lines) - 1))
        how = data.draw(st.sampled_from(["drop", "repeat", "swap"]))
        if how == "drop" and len(lines) > 1:
            del lines[place]
        elif how == "repeat":
            lines.insert(other, lines[place])
        else:
            lines[place], lines[other] = lines[other], lines[place]
    accepted("\n".join(lines))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=50)
@given(st.dictionaries(st.text(), values))
def test_values_round_trip(fields: dict[str, object]) -> None:
    text = write_value(fields)
    assert text.isascii()
    assert "\n" not in text
    found = read_fields(f"    {text} ", 4)
    assert write_value(found) == text
    assert found == fields or "nan" in text


@settings(max_examples=200)
@given(st.text(alphabet='{}[]",:\\ue0+-.12naifhx "', max_size=40))
def test_any_fields_are_read_or_refused(text: str) -> None:
    with contextlib.suppress(Misread):
        found = read_fields("{" + text)
        assert write_value(read_fields(write_value(found))) == write_value(found)


@pytest.mark.parametrize("piece", ["[],", "{},", '"', "a " * 3, "\\"], ids=repr)
def test_many_small_values_are_refused_early(piece: str) -> None:
    line = "        {" + f'"a": [{piece * 60_000}]' + "}"
    text = FULL.rstrip("\n").rpartition("\n")[0] + "\n" + line
    tracemalloc.start()
    try:
        refused(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * len(text)


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdc.ir.parser.MOST_NODES", 8)
    assert "more than 8 nodes" in refused(FULL).what
    monkeypatch.setattr("qdc.ir.parser.MOST_LINES", 8)
    assert "8 lines" in refused(FULL).what


def test_many_prefixes_take_no_time() -> None:
    """Every repetition is read once: this would take hours if a pattern went back over them."""
    many = "   prefix x" * 100_000
    text = SHORT.replace("   prefix body.", many, 1)
    assert isinstance(parse(text, TAGS), LayerGraph)
    refused(SHORT.replace("   stages", "   stages " * 100_000, 1))
