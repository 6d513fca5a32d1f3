"""A third-party pass: chosen layers get one more order, the least salient blocks of others pay.

qdc compile MODEL -o OUT --plugin examples/custom_pass.py --passes \
    'stages(calibrate-mcs,sensitivity,protect-allocate{layers=*.ff_out},daq-lower),pack'

A stage is protected as a whole, so that engines can still fuse its layers. How many blocks pay
follows from the shapes alone: the mean order over all weights is at most the base.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import ClassVar

from pydantic import Field

from qdc import Pass, QdcError, Unit
from qdc.ir.annotations import Annotation, Orders, Salience
from qdc.ir.graph import LayerGraph, Node
from qdc.numerics.blocks import BLOCK


class ProtectAllocate(Pass):
    """Give chosen layers one more order; the least salient blocks of the others pay."""

    name: ClassVar[str] = "protect-allocate"
    requires: ClassVar[tuple[type[Annotation], ...]] = (Salience,)
    provides: ClassVar[tuple[type[Annotation], ...]] = (Orders,)

    layers: tuple[str, ...] = Field(min_length=1, description="patterns of layers to protect")
    base: int = Field(default=2, ge=2, le=3, description="highest mean order of the model")

    def run(self, unit: Unit) -> None:
        """Raise a protected stage; in another one, lower as many blocks as it owes."""
        payments = dict(self.payments(unit.graph))
        for stage, nodes in unit.layers_by_stage():
            notes = [unit.graph.require(node.name, Salience) for node in nodes]
            scores = [sum(block) for block in zip(*(note.blocks for note in notes), strict=True)]
            pay = payments[stage.value]
            poorest = sorted(range(nodes[0].columns // BLOCK), key=scores.__getitem__)[: pay or 0]
            orders = tuple(self.base + (pay is None) - (i in poorest) for i in range(len(scores)))
            for node in nodes:
                unit.annotate(node, Orders(blocks=orders, widths=notes[0].widths))
                unit.remark("passed", node, protected=pay is None, lowered=pay or 0)

    def payments(self, graph: LayerGraph) -> Iterator[tuple[str, int | None]]:
        """Full blocks that each stage gives up, by the value that it reads; None if protected."""
        stages: dict[str, list[Node]] = {}
        for node in graph.layers():
            stages.setdefault(node.inputs[0], []).append(node)
        size = {value: sum(n.rows * n.columns for n in nodes) for value, nodes in stages.items()}
        chosen = {
            v for v in stages if any(fnmatchcase(n.name, p) for n in stages[v] for p in self.layers)
        }
        extra = sum(size[value] for value in chosen)
        payers, debt = sum(size.values()) - extra, 0
        for value, nodes in stages.items():
            if value not in chosen:
                debt += extra * size[value]
                price = sum(node.rows for node in nodes) * BLOCK * payers
                blocks = min(nodes[0].columns // BLOCK, -(-debt // price))
                debt -= blocks * price
            yield value, None if value in chosen else blocks
        if debt > 0 or not chosen or not payers:
            what = "no layer matches" if not chosen else "too many layers match"
            raise QdcError(
                f"{what} layers={','.join(self.layers)}", help="qdc show lists the names"
            )
