"""The text is read back: in full without loss, else as far as it goes."""

from pathlib import Path

import pytest
from hypothesis import given, settings

from qdc.errors import InvalidText, QdcError
from qdc.frontend.opening import open_model
from qdc.ir.annotations import Kept, Moment, Orders
from qdc.ir.dump import from_bytes, to_bytes
from qdc.ir.graph import LayerGraph, Region, Stage
from qdc.ir.parser import parse, read_text
from qdc.ir.printer import render
from qdc.ir.summary import Summary
from qdc.ir.textual import textual
from qdc.ir.verify import verify
from tests.conftest import TESTS
from tests.ir.dumps import TAGS, small
from tests.ir.generated import KNOWN, graphs
from tests.support.checkpoints import EMBEDDED
from tests.support.experts import write_mixture
from tests.support.graphs import annotated, linear, source, structure, two_blocks

GOLDEN = TESTS / "golden"


@settings(max_examples=40)
@given(graphs())
def test_round_trip(graph: LayerGraph) -> None:
    verify(graph)
    full = render(graph, full=True)
    found = parse(full, KNOWN)
    assert to_bytes(found) == to_bytes(graph), "equal to the last bit of a NaN"
    assert render(found, full=True) == full
    assert found == graph or "nan" in full
    text = render(graph)
    short = parse(text, KNOWN)
    assert short == textual(graph)
    assert render(short) == text == render(found)
    assert textual(short) == short


@settings(max_examples=50)
@given(graphs())
def test_annotations_without_a_class_are_kept_whole(graph: LayerGraph) -> None:
    blind = parse(render(graph, full=True), {})
    assert to_bytes(blind) == to_bytes(graph)
    again = render(blind, full=True)
    assert to_bytes(parse(again, KNOWN)) == to_bytes(graph), "and understood again later"


@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_models_round_trip(kind: str, tmp_path: Path) -> None:
    mixture = kind == "mixture"
    folder = write_mixture(tmp_path / "m", experts=3) if mixture else EMBEDDED
    graph = open_model(folder)[1].graph
    assert parse(render(graph, full=True), KNOWN) == graph
    short = parse(render(graph), KNOWN)
    assert short == textual(graph)
    assert short.regions == graph.regions
    assert [node.parameters for node in short] == [node.parameters for node in graph]
    assert list(short.layers()) == list(graph.layers())


def test_the_small_dump_round_trips() -> None:
    graph = small()
    text = render(graph, full=True)
    assert parse(text, TAGS) == graph
    assert to_bytes(parse(text, TAGS)) == to_bytes(graph)
    assert from_bytes(to_bytes(parse(text, TAGS)), TAGS) == graph


PARTS = ("ir.printer.one_region", "frontend.experts")
"""Texts of --only, which cannot be read back."""
EXPECTED = [
    path
    for path in sorted((*GOLDEN.glob("*.txt"), *(GOLDEN / "opt").glob("*.txt")))
    if "graph @" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.stem)
def test_expected_texts_round_trip(path: Path) -> None:
    """All texts of whole graphs that other tests expect; a part says that it is one."""
    found = path.read_text(encoding="utf-8")
    comments = [line for line in found.splitlines() if line.startswith("# ")]
    text = "\n".join(found.splitlines()[len(comments) :]).partition("\n\npassed ")[0] + "\n"
    if path.name.startswith(PARTS):
        with pytest.raises(InvalidText, match="an input is no node"):
            parse(text, KNOWN)
        return
    said = read_text(text, KNOWN)
    assert render(said.graph, full=said.full) == text
    assert said.full or textual(said.graph) == said.graph


def test_what_a_text_leaves_out_is_a_summary() -> None:
    text = render(small())
    found = read_text(text, TAGS)
    assert not found.full
    assert found.graph.get("h0.gate", Moment) is None
    assert found.graph.annotations("h0.gate")["moment"] == Summary(
        of="moment", place="moment", line="f32[8,8]   4 samples, 64 tokens, 30% masked"
    )
    assert found.graph.require("head", Kept) == Kept(reason="outside the repeated blocks")
    assert read_text(render(small(), full=True), TAGS).full


def test_a_summary_gets_into_no_dump_and_no_text_in_full() -> None:
    graph = parse(render(small()), TAGS)
    with pytest.raises(QdcError, match="of @moment there is no more than the line"):
        to_bytes(graph)
    with pytest.raises(QdcError, match="of @moment there is no more") as caught:
        render(graph, full=True)
    assert caught.value.where == ("@moment on %h0.gate",)


def test_a_summary_gives_way_to_the_annotation_itself() -> None:
    graph = parse(render(small()), TAGS)
    graph.annotate("h0.up", Orders(blocks=(2, 2), widths=(4, 4)))
    assert [note.tag for note in graph.annotations("h0.up").values()] == ["orders"]


def test_fields_may_be_given_by_hand() -> None:
    """A text need not be in full for one annotation to be."""
    plain = annotated(two_blocks(), h0__up=Orders(blocks=(1, 3), widths=(4, 4), budget=2))
    text = render(plain, full=True).replace("   in full", "")
    assert parse(text, TAGS).require("h0.up", Orders) == plain.require("h0.up", Orders)


def test_comments_empty_lines_and_line_ends_do_not_matter() -> None:
    text = render(small(), full=True)
    spaced = "\r\n".join(f"# a comment\n\n{line}" for line in text.split("\n"))
    assert parse(spaced, TAGS) == small()


def test_a_layer_that_bears_no_region_s_name_is_told_from_one_that_does() -> None:
    nodes = [source("x", "B", "L", 8), linear("h0.q", "x", 8, 8), linear("q", "h0.q", 8, 8)]
    stages = (Stage(value="x", layers=("h0.q",)), Stage(value="h0.q", layers=("q",)))
    graph = LayerGraph(structure(nodes, [Region(name="h0", nodes=("h0.q", "q"), stages=stages)]))
    assert "  region h0   stages q | %q\n" in render(graph)
    assert parse(render(graph), {}).regions == graph.regions
