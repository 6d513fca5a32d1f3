import json
from typing import ClassVar

import pytest

from qdc.errors import QdcError, UnknownName
from qdc.ir.annotations import Factor, Kept, Moment, Orders, Packed, Salience
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import LayerGraph, Structure
from qdc.ir.opaque import Opaque
from qdc.ir.printer import as_data, render
from tests.conftest import Golden
from tests.support.graphs import annotated, linear, ref, source, structure, two_blocks


class Strange(Kept):
    """An annotation with a field that has no text."""

    tag: ClassVar[str] = "strange"
    number: complex = 1j


def compiled() -> LayerGraph:
    """Two blocks on which passes have written every kind of annotation."""
    graph = annotated(
        two_blocks(256),
        h0__gate=Moment(tensor=ref("m", 256, 256), samples=128, tokens=32_768, masked=0.38),
        h0__up=Factor(tensor=ref("f", 256, 256), damp=0.01, attempts=1, dead=(3, 7)),
        head=Kept(reason="outside the repeated blocks"),
    )
    graph.annotate("h0.gate", Salience(blocks=(1100.0, 9400.0), widths=(128, 128)))
    graph.annotate("h0.gate", Orders(blocks=(1, 3), widths=(128, 128), budget=2))
    stored = (ref("p", 16, 4, 16, dtype="u8"), ref("s", 16, 4, dtype="f16"))
    graph.annotate(
        "h0.gate",
        Packed(
            tensors=stored, suffixes=("planes", "row_scale"), payload_bits=8192, weights=16 * 256
        ),
    )
    graph.annotate("h1.down", Opaque(unknown_tag="future", data={"a": 1}))
    graph.after = "stages(calibrate-mcs{samples=128},sensitivity,abmp-allocate),pack"
    return graph


def test_a_plain_graph(golden: Golden) -> None:
    golden(render(two_blocks()))


def test_an_annotated_graph(golden: Golden) -> None:
    golden(render(compiled()))


def test_an_annotated_graph_in_full(golden: Golden) -> None:
    golden(render(compiled(), full=True))


def test_full_only_adds_lines() -> None:
    short, full = render(compiled()).splitlines(), render(compiled(), full=True).splitlines()
    assert full[0] == f"{short[0]}   in full"
    assert [line for line in full[1:] if not line.startswith("        {")] == short[1:]


def test_one_region_and_two_tags(golden: Golden) -> None:
    golden(render(compiled(), only="h0.*", tags=["orders", "packed"]))


def test_facts_of_the_model(golden: Golden) -> None:
    facts = ModelFacts(
        family="shifted",
        mask_token_id=0,
        vocabulary=7,
        max_length=9,
        logits_shift=1,
        attention_block=3,
    )
    golden(render(LayerGraph(Structure(name="none", model=facts, nodes=(source("x", 4),)))))


def test_the_text_is_deterministic() -> None:
    assert render(compiled()) == render(compiled())


def test_annotations_only_add_lines() -> None:
    before = render(two_blocks(256)).splitlines()
    after = render(compiled()).splitlines()
    added = [line for line in after if line not in before]
    assert [line for line in after if line in before] == before
    assert all(line.startswith(("      @", "  after ")) for line in added)


def test_tags_leave_the_nodes_alone() -> None:
    bare = render(compiled(), tags=[])
    assert "@orders" not in bare
    assert [line for line in render(compiled()).splitlines() if "      @" not in line] == (
        bare.splitlines()
    )


def test_an_unknown_tag_is_shown_under_its_own_name() -> None:
    assert "@future    unknown tag, 1 fields kept" in render(compiled())
    assert "@orders" not in render(compiled(), tags=["future"])
    assert "@future" in render(compiled(), tags=["future"])


def test_a_value_that_no_dump_holds_is_refused() -> None:
    graph = annotated(two_blocks(), head=Strange(reason="so"))
    assert "@strange" in render(graph)
    with pytest.raises(QdcError, match="cannot hold a complex") as caught:
        render(graph, full=True)
    assert caught.value.where == ("@strange on %head",)


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(UnknownName, match=r"no node matches 'h0\.gat'") as caught:
        render(compiled(), only="h0.gat")
    assert "h0.gate" in caught.value.help


def test_a_hostile_text_stays_on_its_line() -> None:
    graph = annotated(two_blocks(), head=Kept(reason="fine\n  %evil = linear\x1b[2J\u202e"))
    text = render(graph)
    (line,) = [line for line in text.splitlines() if "@kept" in line]
    assert line == r"      @kept      fine\n  %evil = linear\x1b[2J\u202e"


def test_no_line_ends_in_a_space() -> None:
    assert not [line for line in render(compiled()).splitlines() if line != line.rstrip()]


def test_data_for_json() -> None:
    data = json.loads(json.dumps(as_data(compiled(), only="h?.gate", tags=["orders"])))
    assert data["graph"] == "toy"
    assert data["version"] == 1
    assert data["after"].startswith("stages(")
    assert [node["name"] for node in data["nodes"]] == ["h0.gate", "h1.gate"]
    assert [region["name"] for region in data["regions"]] == ["h0", "h1"]
    gate = data["nodes"][0]
    assert gate["type"] == {"dtype": "f32", "shape": ["B", "L", 16]}
    assert gate["annotations"] == {"orders": {"blocks": [1, 3], "widths": [128, 128], "budget": 2}}


def test_data_has_the_regions_of_its_nodes() -> None:
    data = json.loads(json.dumps(as_data(compiled(), only="h1.*")))
    assert [region["name"] for region in data["regions"]] == ["h1"]
    assert as_data(compiled(), only="head")["regions"] == []


def test_data_of_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(UnknownName):
        as_data(compiled(), only="nothing")


def test_counts_of_the_header() -> None:
    nodes = [source("x", "B", "L", 4), linear("a", "x", 1000, 4), linear("b", "x", 3, 4)]
    first = render(LayerGraph(structure(nodes))).splitlines()[0]
    assert first == "graph @toy   qdc-ir 1   2 linears   4,012 weights"
