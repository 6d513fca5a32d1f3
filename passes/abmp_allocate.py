"""Move binary orders from the least to the most salient blocks of each layer.

Source: Quant-dLLM, arXiv 2510.03274, Adaptive Blockwise Mixed Precision (ABMP), as the released
code rounds it. As many blocks go down as up, and a ragged last block keeps the base, so the mean
over the weights stays exactly the base. By default the layers of one stage share the decision:
their importances are added, so that engines can fuse them.

    before   %h0.q = linear %x   w f16[64,512]
                 @salience  4 blocks of 128   1.0e+00 .. 9.0e+00
    after        @orders    2 1 3 2   mean 2
"""

from typing import ClassVar, Literal

from qdc.passkit import (
    HIGHEST_ORDER,
    LOWEST_ORDER,
    Field,
    Forecast,
    Kinds,
    LayerGraph,
    Node,
    OrderOutOfRange,
    Orders,
    Pass,
    Salience,
    Unit,
    abmp_orders,
)


class AbmpAllocate(Pass):
    """Move binary orders from the least to the most salient blocks of each layer."""

    name: ClassVar[str] = "abmp-allocate"
    requires: ClassVar[Kinds] = (Salience,)
    provides: ClassVar[Kinds] = (Orders,)
    reads_all: ClassVar[bool] = False

    base: int = Field(default=2, description="mean order of every layer")
    ratio: float = Field(default=0.05, ge=0, le=0.5, description="share of blocks moved each way")
    scope: Literal["stage", "layer"] = Field(
        default="stage", description="rank blocks jointly for a stage, or for each layer"
    )

    def check(self, graph: LayerGraph) -> None:
        """Refuse a base whose neighbours no codec can hold."""
        edge = 1 if self.ratio else 0
        if not LOWEST_ORDER <= self.base - edge <= self.base + edge <= HIGHEST_ORDER:
            raise OrderOutOfRange(
                f"base {self.base} with ratio {self.ratio:g} needs orders "
                f"{self.base - edge}..{self.base + edge}, outside {LOWEST_ORDER}..{HIGHEST_ORDER}",
                where=[f"%{node.name}" for node in graph.layers()],
                help=f"choose base in {LOWEST_ORDER + 1}..{HIGHEST_ORDER - 1}, or ratio=0",
            )

    def run(self, unit: Unit) -> None:
        """Rank the blocks of each stage or layer among themselves and move both ends."""
        for _, together in unit.layers_by_stage():
            groups = (together,) if self.scope == "stage" else tuple((node,) for node in together)
            for group in groups:
                self.allocate(unit, group)

    def forecast(self, unit: Forecast) -> None:
        """Which block moves is not known, but how many do is, and so is what is stored."""
        for node in unit.layers():
            salience = unit.graph.get(node.name, Salience)
            if salience is None:
                unit.unknown()
                continue
            orders = abmp_orders(salience.blocks, salience.widths, self.ratio, self.base)
            unit.annotate(node, Orders(blocks=orders, widths=salience.widths, budget=self.base))

    def allocate(self, unit: Unit, group: tuple[Node, ...]) -> None:
        """Give all layers of a group the orders that their summed salience asks for."""
        notes = [unit.graph.require(node.name, Salience) for node in group]
        scores = [sum(column) for column in zip(*(n.blocks for n in notes), strict=True)]
        widths = notes[0].widths
        orders = abmp_orders(scores, widths, self.ratio, self.base)
        for node in group:
            unit.annotate(node, Orders(blocks=orders, widths=widths, budget=self.base))
            raised = sum(order > self.base for order in orders)
            if self.ratio and not raised:
                unit.remark("missed", node, reason="too few blocks", blocks=len(orders))
            elif raised:
                unit.remark("passed", node, raised=raised, lowered=raised)
