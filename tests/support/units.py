"""Units for testing one pass alone: a few linears, their weights, no model and no text."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from qdc.checkpoint.folder import Checkpoint
from qdc.distributed.world import World
from qdc.frontend.opening import open_model
from qdc.frontend.tracer import Program
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Factor, Moment, Orders
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import LayerGraph, Node, Region, Stage, Structure
from qdc.ir.types import Parameter, ValueType, short_dtype
from qdc.numerics.blocks import block_widths
from qdc.numerics.factor import factorize
from qdc.pipeline.passbase import Pass
from qdc.pipeline.traversal import Scope
from qdc.streaming.unit import Unit
from qdc.streaming.workspace import Workspace

FACTS = ModelFacts(family="toy", mask_token_id=1, vocabulary=8, max_length=16)


class Weights:
    """Stands in for a checkpoint: tensors by name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def tensor(self, name: str) -> Tensor:
        return self.tensors[name]


def layers(weights: Mapping[str, Tensor]) -> LayerGraph:
    """A graph of one region; linears of equal input size read one value and make one stage."""
    inputs: dict[str, list[str]] = {}
    linears: list[Node] = []
    for name, weight in weights.items():
        rows, columns = weight.shape
        read = f"x{columns}"
        inputs.setdefault(read, []).append(name)
        dtype = short_dtype(str(weight.dtype))
        linears.append(
            Node(
                name=name,
                op="linear",
                inputs=(read,),
                type=ValueType(dtype="f32", shape=("B", "L", rows)),
                path=f"model.{name}",
                parameters=(
                    Parameter(name=f"model.{name}.weight", dtype=dtype, shape=(rows, columns)),
                ),
            )
        )
    given = [
        Node(name=n, op="input", type=ValueType(dtype="f32", shape=("B", "L", int(n[1:]))))
        for n in inputs
    ]
    stages = tuple(Stage(value=value, layers=tuple(names)) for value, names in inputs.items())
    region = Region(name="h0", nodes=tuple(weights), stages=stages)
    return LayerGraph(
        Structure(
            name="toy",
            prefix="model.",
            model=FACTS,
            nodes=(*given, *linears),
            regions=(region,),
        )
    )


def make_unit(
    step: Pass,
    weights: Mapping[str, Tensor],
    *,
    world: World | None = None,
    tags: Mapping[str, type[Annotation]] | None = None,
) -> Unit:
    """A unit of all these layers, by name."""
    graph = layers(weights)
    named = Weights({f"model.{name}.weight": weight for name, weight in weights.items()})
    workspace = Workspace(
        Program(graph, nn.Module(), {}),
        cast(Checkpoint, named),
        torch.device("cpu"),
        calibration=None,
        world=world or World(),
        tags=tags or {},
    )
    region = graph.regions[0]
    return Unit.of(
        Scope(step, 0, graph, graph.waves[region.name].stages, region, whole_region=True), workspace
    )


def whole_model(step: Pass, workspace: Workspace) -> Unit:
    """The unit that a barrier pass gets."""
    graph = workspace.program.graph
    waves = tuple((stage,) for region in graph.regions for stage in region.stages)
    return Unit.of(Scope(step, 0, graph, waves, None, whole_region=True), workspace)


def unit_of_model(step: Pass, model: Path) -> Unit:
    """The same, of a checkpoint without text."""
    checkpoint, program = open_model(model)
    return whole_model(step, Workspace(program, checkpoint, torch.device("cpu"), calibration=None))


def annotate_all(unit: Unit, *notes: Annotation) -> None:
    """Write the same annotations on every layer of a unit."""
    for node in unit.layers():
        for note in notes:
            unit.annotate(node, note)


def put_statistics(unit: Unit, moment: Tensor, orders: tuple[int, ...]) -> None:
    """What daq-lower reads: a moment, its factor and the orders, shared by all layers."""
    factor = factorize(moment)
    dead = tuple(factor.dead.nonzero().flatten().tolist())
    widths = block_widths(moment.shape[0])
    annotate_all(
        unit,
        Moment(tensor=unit.put("x:moment", moment), samples=1, tokens=1, masked=0.5),
        Factor(
            tensor=unit.put("x:factor", factor.upper),
            damp=factor.damp,
            attempts=factor.attempts,
            dead=dead,
        ),
        Orders(blocks=orders, widths=widths),
    )


def correlated_moment(columns: int, seed: int = 0) -> Tensor:
    """A well-conditioned second moment whose inputs are strongly correlated."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(4 * columns, 8, generator=generator)
    mix = torch.randn(8, columns, generator=generator)
    inputs = shared @ mix + torch.randn(4 * columns, columns, generator=generator)
    moment: Tensor = inputs.T @ inputs / len(inputs)
    return moment


def noise(rows: int, columns: int, seed: int = 0) -> Tensor:
    """A random fp32 weight."""
    generator = torch.Generator().manual_seed(seed)
    weight: Tensor = torch.randn(rows, columns, generator=generator) / columns**0.5
    return weight
