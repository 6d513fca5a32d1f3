"""A third-party pass: chosen layers get order 3, the least salient blocks of the others pay.

--passes 'stages(calibrate-mcs,sensitivity,protect-allocate{layers=*.ff_out},daq-lower),pack'

Stages are protected as a whole, so that engines can fuse their layers; the mean is at most 2.
"""

from fnmatch import fnmatchcase as match
from typing import ClassVar

from qdc.passkit import (
    BLOCK, Field, Kinds, LayerGraph, Node, Orders, Pass, QdcError, Salience, Unit,
)  # fmt: skip


class ProtectAllocate(Pass):
    """Give chosen layers order 3; the least salient blocks of the others pay for it."""

    name: ClassVar[str] = "protect-allocate"
    requires: ClassVar[Kinds] = (Salience,)
    provides: ClassVar[Kinds] = (Orders,)
    layers: tuple[str, ...] = Field(min_length=1, description="patterns of layers to protect")

    def check(self, graph: LayerGraph) -> None:
        """Refuse patterns that match nothing, or more than the others can pay for."""
        self.payments(graph)

    def run(self, unit: Unit) -> None:
        """Raise every block of a protected stage, lower the least salient ones of another."""
        for stage, nodes in unit.layers_by_stage():
            notes = [unit.graph.require(node.name, Salience) for node in nodes]
            scores = [sum(block) for block in zip(*(note.blocks for note in notes), strict=True)]
            pay = self.payments(unit.graph).get(stage.value)
            poorest = sorted(range(nodes[0].columns // BLOCK), key=scores.__getitem__)[: pay or 0]
            orders = tuple(2 + (pay is None) - (i in poorest) for i in range(len(scores)))
            for node in nodes:
                unit.annotate(node, Orders(blocks=orders, widths=notes[0].widths))

    def payments(self, graph: LayerGraph) -> dict[str, int]:
        """Full blocks that each stage lowers, by the value it reads; none if it is protected."""
        stages: dict[str, list[Node]] = {}
        for node in graph.layers():
            stages.setdefault(node.inputs[0], []).append(node)
        chosen = {n.inputs[0] for p in self.layers for n in graph.layers() if match(n.name, p)}
        size = {value: sum(n.rows * n.columns for n in nodes) for value, nodes in stages.items()}
        extra = sum(size[value] for value in chosen)
        paying, debt, lowered = sum(size.values()) - extra, 0, {}
        for value in (value for value in stages if value not in chosen):
            columns = stages[value][0].columns
            debt, price = debt + extra * size[value], size[value] // columns * BLOCK * paying
            lowered[value] = min(columns // BLOCK, max(0, -(-debt // price)))
            debt -= lowered[value] * price
        if not extra:
            raise QdcError(
                f"{self} matches no layer", help="qdc show MODEL has the names of all layers"
            )
        if debt > 0 or not paying:
            raise QdcError(
                f"{self} protects {extra:,} weights, more than the others can pay for",
                help="protect fewer layers",
            )
        return lowered
