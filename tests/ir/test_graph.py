import pytest
from pydantic import ValidationError

from qdc.errors import InvalidGraph, MissingAnnotation, UnknownName
from qdc.ir.annotations import Kept, Orders, Salience
from qdc.ir.graph import LayerGraph, Node
from qdc.ir.opaque import Opaque
from qdc.ir.types import Parameter
from tests.support.graphs import annotated, function, linear, source, structure, two_blocks, value

ORDERS = Orders(blocks=(1, 3), widths=(4, 4))


def test_two_nodes_of_one_name_are_refused() -> None:
    nodes = [source("x", 4), linear("a", "x", 2, 4), linear("a", "x", 3, 4)]
    with pytest.raises(InvalidGraph, match="two nodes have one name") as caught:
        LayerGraph(structure(nodes))
    assert caught.value.where == ("%a",)


def test_an_unknown_input_is_refused() -> None:
    nodes = [source("x", 4), function("sum", "add", ("x", "y", "z"), 4)]
    with pytest.raises(InvalidGraph, match="an input is no node: y, z") as caught:
        LayerGraph(structure(nodes))
    assert caught.value.where == ("%sum",)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a b", "a/b", ".a", "a\n", "x" * 300])
def test_node_names_cannot_be_paths(name: str) -> None:
    with pytest.raises(ValidationError):
        Node(name=name, op="input", type=value(4))


@pytest.mark.parametrize("name", ["0.q", "blocks.0.q_proj", "über.straße", "_x-1"])
def test_node_names_are_module_paths(name: str) -> None:
    assert Node(name=name, op="input", type=value(4)).name == name


def test_edges_follow_the_inputs() -> None:
    edges = two_blocks().edges
    assert set(edges.predecessors("h0.mul")) == {"h0.gate", "h0.up"}
    assert set(edges.successors("h0.down")) == {"h1.gate", "h1.up"}


def test_looking_up_a_node() -> None:
    graph = two_blocks()
    assert graph["h0.up"].name == "h0.up"
    assert "h0.up" in graph
    assert "h0.upp" not in graph
    with pytest.raises(UnknownName, match=r"h0\.upp") as caught:
        graph["h0.upp"]
    assert "did you mean h0.up" in caught.value.help


def test_shape_of_a_linear() -> None:
    node = two_blocks()["h0.gate"]
    assert (node.rows, node.columns) == (16, 8)
    with pytest.raises(InvalidGraph, match="no weight"):
        _ = two_blocks()["h0.mul"].rows


def test_the_same_slot_is_replaced() -> None:
    graph = annotated(two_blocks(), h0__up=ORDERS)
    later = Orders(blocks=(2, 2), widths=(4, 4))
    graph.annotate("h0.up", later)
    assert graph.get("h0.up", Orders) == later
    assert list(graph.annotations("h0.up").values()) == [later]


def test_slots_keep_the_order_in_which_they_were_first_written() -> None:
    salience = Salience(blocks=(1.0, 2.0), widths=(4, 4))
    graph = annotated(two_blocks(), h0__up=salience)
    graph.annotate("h0.up", ORDERS)
    graph.annotate("h0.up", Salience(blocks=(3.0, 4.0), widths=(4, 4)))
    assert list(graph.annotations("h0.up")) == ["salience", "orders"]


def test_unknown_tags_have_a_slot_each() -> None:
    graph = annotated(two_blocks(), h0__up=Opaque(unknown_tag="new", data={"a": 1}))
    graph.annotate("h0.up", Opaque(unknown_tag="other", data={}))
    graph.annotate("h0.up", Opaque(unknown_tag="new", data={"a": 2}))
    found = graph.annotations("h0.up").values()
    assert [n.data for n in found if isinstance(n, Opaque)] == [{"a": 2}, {}]


def test_annotations_are_found_and_removed_by_class() -> None:
    graph = annotated(two_blocks(), h0__up=ORDERS)
    assert graph.require("h0.up", Orders) is ORDERS
    assert graph.get("h0.up", Salience) is None
    graph.remove("h0.up", Orders)
    graph.remove("h0.up", Orders)
    with pytest.raises(MissingAnnotation, match="no @orders") as caught:
        graph.require("h0.up", Orders)
    assert caught.value.where == ("%h0.up",)


def test_annotating_no_node_is_refused() -> None:
    with pytest.raises(UnknownName):
        annotated(two_blocks(), nowhere=ORDERS)


def test_layers_are_the_linears_of_regions_that_nobody_keeps() -> None:
    graph = annotated(two_blocks(), h1__up=Kept(reason="too small"))
    assert [n.name for n in graph.linears()][-1] == "head"
    names = [node.name for node in graph.layers()]
    assert names == ["h0.gate", "h0.up", "h0.down", "h1.gate", "h1.down"]


def test_with_annotations_starts_from_none() -> None:
    graph = annotated(two_blocks(), h0__up=ORDERS)
    other = graph.with_annotations({"h0.down": [Kept(reason="why not")]}, "pack")
    assert other.after == "pack"
    assert other.structure == graph.structure
    assert not other.annotations("h0.up")
    assert other.get("h0.down", Kept) == Kept(reason="why not")
    assert graph.get("h0.up", Orders) == ORDERS


def test_the_vocabulary_has_a_row_for_each_token_and_lies_outside_the_regions() -> None:
    def embedding(name: str, rows: int) -> Node:
        weight = Parameter(name=f"{name}.weight", dtype="f16", shape=(rows, 8))
        node = function(name, "embedding", ("tokens",), "B", "L", 8)
        return node.model_copy(update={"parameters": (weight,)})

    graph = two_blocks()
    nodes = [linear("h0.gate", "tokens", 1000, 8) if n.name == "h0.gate" else n for n in graph]
    nodes += [embedding("wte", 1000), embedding("positions", 64), linear("small", "tokens", 64, 8)]
    changed = LayerGraph(structure(nodes, graph.regions))
    assert [node.name for node in changed.vocabulary()] == ["head", "wte"]


def test_graphs_are_equal_if_all_that_they_say_is() -> None:
    one, other = two_blocks(), two_blocks()
    assert one == other
    assert one != two_blocks(16)
    assert one != "a graph"
    one.annotate("head", Kept(reason="so"))
    assert one != other
    other.annotate("head", Kept(reason="so"))
    assert one == other
    other.after = "pack"
    assert one != other
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_the_order_of_annotations_counts() -> None:
    one, other = two_blocks(), two_blocks()
    notes = (Kept(reason="so"), Orders(blocks=(2,), widths=(8,)))
    for graph, written in ((one, notes), (other, notes[::-1])):
        for note in written:
            graph.annotate("head", note)
    assert one != other
