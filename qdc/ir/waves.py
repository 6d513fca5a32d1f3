"""Stages of a region that do not hang on each other, and the order in which they can be taken.

A stage hangs on all linears between the start of its region and the value that it reads. Stages of
equal depth do not hang on each other: in a block with a router the inputs of all experts, then
their outputs. They form one wave: calibrated from one pass of the samples, lowered side by side.
Blocks without a router have a few stages, taken one by one as they are executed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdc.ir.routing import ROUTED, ROWS

if TYPE_CHECKING:
    from qdc.ir.graph import LayerGraph, Region, Stage


@dataclass(frozen=True)
class Waves:
    """How the stages of a region are taken."""

    stages: "tuple[tuple[Stage, ...], ...]"
    """Wave by wave."""
    nodes: tuple[str, ...]
    """The region's nodes as they are executed when samples stop before each wave."""

    def each(self) -> "Iterator[Stage]":
        """All stages, in the order in which samples come to them."""
        return (stage for wave in self.stages for stage in wave)


def waves_of(graph: "LayerGraph", region: "Region") -> Waves:
    """Group the stages of a region into waves."""
    if not any(graph[name].op == ROWS for name in region.nodes):
        return Waves(tuple((stage,) for stage in region.stages), region.nodes)
    layers = {layer for stage in region.stages for layer in stage.layers}
    depths = _depths(graph, region, layers)
    found: dict[int, list[Stage]] = {}
    for stage in region.stages:
        found.setdefault(depths[stage.layers[0]], []).append(stage)
    place = {name: index for index, name in enumerate(region.nodes)}
    turns = _turns(graph, region, layers, depths)
    nodes = sorted(region.nodes, key=lambda name: (turns[name], place[name]))
    return Waves(tuple(tuple(found[depth]) for depth in sorted(found)), tuple(nodes))


def _depths(graph: "LayerGraph", region: "Region", layers: set[str]) -> dict[str, int]:
    """Linears on the longest way from the region's start to each node, itself left out."""
    depths: dict[str, int] = {}
    for name in region.nodes:
        read = [each for each in graph.edges.predecessors(name) if each in depths]
        depths[name] = max((depths[each] + (each in layers) for each in read), default=0)
    return depths


def _turns(
    graph: "LayerGraph", region: "Region", layers: set[str], depths: Mapping[str, int]
) -> dict[str, int]:
    """The wave with which each node is executed: as early as can be.

    What picks the tokens of an expert waits for the expert, so that all of them are not held at
    once. What an expert makes of its first products belongs to them: its result is smaller.
    """
    first = _first_readers(graph, region, layers, depths)
    turns: dict[str, int] = {}
    behind: set[str] = set()
    for name in region.nodes:
        read = [each for each in graph.edges.predecessors(name) if each in depths]
        routed = graph[name].type.shape[:1] == (ROUTED,)
        earliest = max((turns[each] for each in read), default=0)
        if name in layers or (routed and behind.isdisjoint(read)):
            earliest = max(earliest, first.get(name, depths[name]))
        turns[name] = earliest
        if routed and (name in layers or not behind.isdisjoint(read)):
            behind.add(name)
    return turns


def _first_readers(
    graph: "LayerGraph", region: "Region", layers: set[str], depths: Mapping[str, int]
) -> dict[str, int]:
    """The lowest depth among the linears that hang on each node, itself included."""
    first: dict[str, int] = {}
    for name in reversed(region.nodes):
        found = [first[each] for each in graph.edges.successors(name) if each in first]
        found += [depths[name]] if name in layers else []
        if found:
            first[name] = min(found)
    return first
