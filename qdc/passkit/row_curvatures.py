"""How the loss bends with the rows of embedding and head: summed over tokens by ``guide``.

An error e of a head's row v moves one logit by e.h, whose curvature is p(1 - p); summed over rows
that is (1 - sum p^2) (e.h)^2, with a cap on logits only what gets through it. So states h count by
how unsure the prediction is. An error of an embedding's row moves what it gives, where the squared
derivative of the loss is its curvature. A matrix that is both has the sum. Rows differ
in how often they count, which does not change how best to round each of them.
"""

from collections.abc import Mapping

from torch import Tensor

from qdc.ir.curvature import RowCurvature
from qdc.ir.graph import EMBEDDING, LayerGraph, Node
from qdc.passkit.curvatures import add_products, write_curvature
from qdc.passkit.outputs import damped_factor
from qdc.streaming.unit import Unit


class RowCurvatures:
    """Sums over tokens, by the node that owns the matrix."""

    def __init__(self, graph: LayerGraph, head: str) -> None:
        """``head`` is the output head's node."""
        self.graph, self.sums = graph, dict[str, Tensor]()
        owned = {node.name: node for node in graph.vocabulary()}
        owner = graph.owner(head)
        self.head = owner if owner in owned else None
        found = (node.name for node in owned.values() if node.op == EMBEDDING)
        self.embedding = next(found, None)

    def add_head(self, hidden: Tensor, unsure: Tensor) -> None:
        """Add what the head reads, ``f32[n, columns]``, and how unsure each place is, f32[n]."""
        if self.head is not None:
            add_products(self.sums, self.head, hidden * unsure.sqrt()[:, None])

    def add_embedding(self, slopes: Mapping[str, Tensor]) -> None:
        """Add tokens: derivatives by what the embedding gives, ``f32[..., columns]``."""
        if self.embedding is not None and self.embedding in slopes:
            add_products(self.sums, self.embedding, slopes[self.embedding])

    def write(self, unit: Unit, positions: int) -> None:
        """Annotate the matrices; remark those whose rows are not known to bend anything.

        Args:
            unit: the model.
            positions: predictions that were looked at.

        Raises:
            NotFinite: a curvature is infinite or not a number.
        """
        for node in self.graph.vocabulary():
            found = self.sums.get(node.name)
            if found is None or not bool(found.diagonal().any()):
                unit.remark("missed", node, reason="no prediction hangs on its rows")
                continue
            write_curvature(unit, node, RowCurvature, found / positions, positions)


def row_factor(unit: Unit, node: Node, damp: float) -> Tensor:
    """The factor of a matrix's curvature.

    Args:
        unit: of the matrix, which carries its curvature.
        node: embedding or head.
        damp: share of the mean curvature that is added to the diagonal.

    Returns:
        f32[columns, columns], V with the curvature inv(V^T V).

    Raises:
        NotPositiveDefinite: the curvature holds numbers that are not finite.
    """
    found = unit.get(unit.graph.require(node.name, RowCurvature).tensor)
    return damped_factor(node, found, damp)
