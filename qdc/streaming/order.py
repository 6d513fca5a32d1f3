"""In which order nodes are executed, and which values are needed at a place of it."""

from bisect import bisect_left
from collections.abc import Collection

from qdc.ir.graph import LayerGraph, Region, Stage


class ExecutionOrder:
    """All nodes of a graph in a row, and who reads whom."""

    def __init__(self, graph: LayerGraph) -> None:
        """Index the nodes; the inputs but for the token ids are absent."""
        self.graph = graph
        self.names = execution_order(graph)
        """Nodes as they are executed: stages of one wave side by side."""
        self.place = {name: index for index, name in enumerate(self.names)}
        self.tokens, *self.absent = [node.name for node in graph if node.op == "input"]
        self.edges = graph.edges.copy()
        """Who reads whom; what is absent is read by nobody."""
        self.edges.remove_nodes_from(self.absent)
        self._bounds, self._live = self._read_across_regions()
        self._entrances: dict[str, int] = {}

    def steps(self, wanted: Collection[str], held: Collection[str]) -> list[str]:
        """Nodes to execute, in order, to get the wanted values from the held ones."""
        needed = set[str]()
        pending = [name for name in wanted if name not in held]
        while pending:
            name = pending.pop()
            if name not in needed:
                needed.add(name)
                pending.extend(p for p in self.edges.predecessors(name) if p not in held)
        return sorted(needed, key=self.place.__getitem__)

    def read_after(self, boundary: int) -> frozenset[str]:
        """Values from before this place of the order that nodes from it on read."""
        index = bisect_left(self._bounds, boundary)
        later = {
            name
            for step in self.names[boundary : self._bounds[index]]
            if step not in self.absent
            for name in self.edges.predecessors(step)
        }
        found = later | self._live[index]
        return frozenset(name for name in found if self.place[name] < boundary)

    def span(self, region: Region) -> range:
        """Places of a region's nodes in the order."""
        start = self.place[region.nodes[0]]
        return range(start, start + len(region.nodes))

    def entrance(self, stage: Stage) -> int:
        """Where samples stand before a stage, and before all others of its wave."""
        layer = stage.layers[0]
        if self._entrances.get(layer) is None:
            wave = next((w for w in self._waves(layer) if stage in w), (stage,))
            places = [self.place[each] for member in wave for each in member.layers]
            self._entrances |= {each: min(places) for member in wave for each in member.layers}
        return self._entrances[layer]

    def _waves(self, layer: str) -> tuple[tuple[Stage, ...], ...]:
        region = self.graph.inside.get(layer)
        return () if region is None else self.graph.waves[region.name].stages

    def derived(self, names: Collection[str], boundary: int) -> set[str]:
        """Values from before this place of the order that hang on some nodes, these included."""
        found, pending = set(names), list(names)
        while pending:
            for reader in self.edges.successors(pending.pop()):
                if reader not in found and self.place[reader] < boundary:
                    found.add(reader)
                    pending.append(reader)
        return found

    def _read_across_regions(self) -> tuple[list[int], list[frozenset[str]]]:
        """Ends of the regions and of the model, and what nodes from each of them on read.

        It is worked out once: a region of many experts has many boundaries, each of which then
        looks no further than the region's end.
        """
        last = {
            read: self.place[step]
            for step in self.names
            if step not in self.absent
            for read in self.edges.predecessors(step)
        }
        ends = {self.span(region).stop for region in self.graph.regions}
        bounds = sorted(ends | {len(self.names)})
        live: set[str] = set()
        found: list[frozenset[str]] = []
        for start, end in zip([0, *bounds], bounds, strict=False):
            live |= {name for name in self.names[start:end] if name in last}
            live = {name for name in live if last[name] >= end}
            found.append(frozenset(live))
        return bounds, found


def execution_order(graph: LayerGraph) -> list[str]:
    """Names of all nodes, those of a region as its waves ask for."""
    names: list[str] = []
    for node in graph:
        region = graph.inside.get(node.name)
        if region is None:
            names.append(node.name)
        elif node.name == region.nodes[0]:
            names += graph.waves[region.name].nodes
    return names
