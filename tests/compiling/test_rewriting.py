"""Passes on a graph alone: what they may do, and what is refused."""

from typing import ClassVar

import pytest
import torch
from pydantic import Field

from qdc.compiling.rewriting import rewrite
from qdc.errors import (
    InvalidGraph,
    InvalidPipeline,
    MissingAnnotation,
    MissingWeights,
    OrderOutOfRange,
)
from qdc.format.codec import Lowered
from qdc.format.multibinary import MultiBinary
from qdc.format.uniformgrid import UniformGrid
from qdc.ir.activations import Rotation
from qdc.ir.annotations import Factor, Kept, Moment, Orders, Salience
from qdc.ir.costs import Costs
from qdc.ir.graph import LayerGraph
from qdc.ir.parser import parse
from qdc.ir.printer import render
from qdc.passes.daq_lower import Daq
from qdc.passes.rtn_lower import Rtn
from qdc.pipeline.builder import build_plan
from qdc.pipeline.passbase import Kinds, Pass
from qdc.pipeline.registry import Registry, standard_registry
from qdc.streaming.unit import Unit
from tests.support.graphs import ref, two_blocks

LAYERS = ("h0.gate", "h0.up", "h0.down", "h1.gate", "h1.up", "h1.down")


class Asking(Pass):
    """Ask for one thing that a compile has."""

    name: ClassVar[str] = "asking"
    what: str = Field(default="weight")

    def run(self, unit: Unit) -> None:
        node = unit.layers()[0]
        if self.what == "weight":
            unit.weight(node)
        elif self.what == "tensor":
            unit.get(unit.graph.require(node.name, Moment).tensor)
        elif self.what == "find":
            unit.find(unit.graph.require(node.name, Moment).tensor)
        elif self.what == "stream":
            unit.stream(lambda: [torch.zeros(1, 4, dtype=torch.int64)])
        elif self.what == "reference":
            unit.reference(lambda: [torch.zeros(1, 4, dtype=torch.int64)])
        elif self.what == "loose":
            unit.loose_stream([torch.zeros(1, 4, dtype=torch.int64)], unit.original_weights())
        elif self.what == "original":
            unit.original_weights()(node.name)
        elif self.what == "part":
            list(unit.row_parts(node, 1))


class Writing(Pass):
    """Keep a tensor of its own and read it again; note which units it saw."""

    name: ClassVar[str] = "writing"
    seen: ClassVar[list[tuple[str, ...]]] = []
    provides: ClassVar[Kinds] = (Factor,)

    def run(self, unit: Unit) -> None:
        self.seen.append(tuple(node.name for node in unit.layers()))
        for node in unit.layers():
            name = f"{node.name}:mine"
            put = unit.put(name, torch.ones(node.columns, node.columns))
            assert bool((unit.get(put) == 1).all())
            unit.annotate(node, Factor(tensor=put, damp=0.5, attempts=1))


class Counting(Pass):
    """Read what layers were lowered to, whatever it is."""

    name: ClassVar[str] = "counting"
    requires: ClassVar[Kinds] = (Lowered,)
    found: ClassVar[list[str]] = []

    def run(self, unit: Unit) -> None:
        self.found.extend(unit.graph.require(node.name, Lowered).tag for node in unit.layers())


class Breaking(Pass):
    """Leave orders that no codec has."""

    name: ClassVar[str] = "breaking"

    def run(self, unit: Unit) -> None:
        for node in unit.layers():
            unit.annotate(node, Orders(blocks=(9,), widths=(node.columns,)))


@pytest.fixture
def registry() -> Registry:
    found = standard_registry()
    for kind in (Asking, Writing, Counting, Breaking):
        found.add(kind)
    Writing.seen.clear()
    Counting.found.clear()
    return found


def graph() -> LayerGraph:
    """Two blocks with a moment and a salience on each of their linears."""
    found = two_blocks()
    for name in LAYERS:
        columns = found[name].columns
        square = ref(f"{name}:moment", columns, columns)
        found.annotate(name, Moment(tensor=square, samples=1, tokens=8, masked=0.5))
        widths = (columns // 4,) * 4
        found.annotate(name, Salience(blocks=(3.0, 1.0, 4.0, 2.0), widths=widths))
    found.after = "calibrate-mcs,sensitivity"
    return found


def run(graph: LayerGraph, passes: str, registry: Registry) -> tuple[str, ...]:
    return rewrite(graph, build_plan(passes, registry), registry.annotations())


@pytest.mark.parametrize(
    "passes", ["abmp-allocate{ratio=0.25}", "stages(abmp-allocate{ratio=0.25})"]
)
def test_the_graph_is_rewritten_and_its_pipeline_extended(passes: str, registry: Registry) -> None:
    found = graph()
    said = run(found, passes, registry)
    assert [found.require(name, Orders).blocks for name in LAYERS] == [(2, 1, 3, 2)] * 6
    assert found.after == f"calibrate-mcs,sensitivity,{passes}"
    assert said[0] == "passed abmp-allocate %h0.gate raised=1 lowered=1"
    assert len(said) == 6


def test_a_plan_of_several_passes_reads_what_the_first_ones_wrote(registry: Registry) -> None:
    found = graph()
    found.after = ""
    run(found, "writing,stages(abmp-allocate)", registry)
    assert found.after == "writing,stages(abmp-allocate)"
    assert all(found.get(name, Factor) and found.get(name, Orders) for name in LAYERS)


def test_passes_see_regions_or_stages(registry: Registry) -> None:
    run(graph(), "writing", registry)
    assert Writing.seen == [LAYERS[:3], LAYERS[3:]]
    Writing.seen.clear()
    run(graph(), "stages(writing)", registry)
    assert Writing.seen == [LAYERS[:2], LAYERS[2:3], LAYERS[3:5], LAYERS[5:]]


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("weight", "the weight h0.gate.weight"),
        ("tensor", "the tensor h0.gate:moment"),
        ("find", "the tensor h0.gate:moment"),
        ("stream", "a run of the model"),
        ("reference", "a run of the model"),
        ("loose", "a run of the model"),
        ("original", "the weight h0.gate.weight"),
        ("part", "the weight h0.gate.weight"),
    ],
)
def test_what_a_dump_has_not_is_refused(what: str, named: str, registry: Registry) -> None:
    with pytest.raises(MissingWeights, match=f"asking asks for {named}, and a dump has none") as e:
        run(graph(), f"asking{{what={what}}}", registry)
    assert "qdc compile" in e.value.help


@pytest.mark.parametrize("passes", ["default", "best", "calibrate-mcs", "abmp-allocate,polish"])
def test_calibration_is_refused_before_anything_runs(passes: str, registry: Registry) -> None:
    found = graph()
    before = render(found, full=True)
    with pytest.raises(MissingWeights, match="runs the model on calibration text"):
        run(found, passes, registry)
    assert render(found, full=True) == before


def test_layers_that_lack_something_are_named(registry: Registry) -> None:
    found = graph()
    found.remove("h1.up", Salience)
    with pytest.raises(MissingAnnotation, match="reads @salience, which 1 of 6 layers lack") as e:
        run(found, "abmp-allocate", registry)
    assert e.value.where == ("%h1.up",)
    found.annotate("h1.up", Kept(reason="so"))
    run(found, "abmp-allocate", registry)


def test_a_summary_is_not_enough(registry: Registry) -> None:
    found = parse(render(graph()), registry.annotations())
    with pytest.raises(MissingAnnotation, match="of which the text shows a summary") as caught:
        run(found, "abmp-allocate", registry)
    assert caught.value.where == tuple(f"%{name}" for name in LAYERS)
    assert "--full" in caught.value.help


def test_what_a_pass_gives_counts_as_read(registry: Registry) -> None:
    with pytest.raises(MissingAnnotation, match="measure-orders reads @factor"):
        run(graph(), "measure-orders", registry)
    with pytest.raises(MissingWeights, match="measure-orders asks for the weight"):
        run(graph(), "writing,measure-orders", registry)


def test_passes_refuse_the_graph_as_in_a_compile(registry: Registry) -> None:
    with pytest.raises(OrderOutOfRange):
        run(graph(), "abmp-allocate{base=4}", registry)
    with pytest.raises(InvalidGraph, match="breaking left an invalid graph"):
        run(graph(), "breaking", registry)
    with pytest.raises(InvalidPipeline, match="scale"):
        run(graph(), "writing,measure-orders,abmp-allocate,daq-lower{scale-bits=8}", registry)


@pytest.mark.parametrize("summary", [False, True])
def test_what_a_pass_would_make_wrong_is_refused(summary: bool, registry: Registry) -> None:
    """As in a compile; a layer is enough, and a text of it too."""
    found = two_blocks()
    found.annotate("h0.gate", Rotation(seed=3))
    if summary:
        found = parse(render(found), registry.annotations())
    with pytest.raises(InvalidPipeline, match="makes @rotation of before it wrong"):
        run(found, "rotate", registry)


def test_layers_may_be_lowered_each_in_its_own_way(registry: Registry) -> None:
    found = graph()
    for name in LAYERS:
        rows, columns = found[name].rows, found[name].columns
        grid = UniformGrid(rows=rows, columns=columns, group=16, bits=2)
        planes = MultiBinary(rows=rows, columns=columns, block=16, orders=(2,))
        codes, signs = Rtn(codec=grid), Daq(codec=planes, outliers=0, sweeps=1)
        found.annotate(name, signs if name == "h0.up" else codes)
    run(found, "counting", registry)
    assert Counting.found == ["rtn", "daq", "rtn", "rtn", "rtn", "rtn"]


@pytest.mark.parametrize("text", ["allocate", "allocate{scope=model}", "abmp-allocate"])
def test_a_graph_without_layers_stays_as_it_is(text: str, registry: Registry) -> None:
    found = two_blocks()
    for name in LAYERS:
        found.annotate(name, Kept(reason="all of them"))
    run(found, text, registry)
    assert not any(found.get(name, Costs) or found.get(name, Rtn) for name in LAYERS)
    assert found.after == text
