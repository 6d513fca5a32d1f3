"""How the loss bends with the rows of embedding and head: summed over tokens by ``guide``.

An error e of a head's row v moves one logit by e.h, whose curvature is p(1 - p); summed over rows
that is (1 - sum p^2) (e.h)^2 (with a cap on logits, what gets through it), so states h count by how
unsure the prediction is. An error of an
embedding's row moves what the first block reads, where the squared derivative of the loss is
its curvature. A matrix that is both has the sum. Rows differ in how often they count, which does
not change how best to round each of them.
"""

from collections.abc import Mapping

from torch import Tensor

from qdc.errors import NotFinite
from qdc.ir.graph import EMBEDDING, LayerGraph, Node
from qdc.ir.keys import table_key
from qdc.ir.rowcurvature import RowCurvature
from qdc.numerics.products import product
from qdc.passkit.outputs import damped_factor
from qdc.streaming.forecast import Forecast
from qdc.streaming.unit import Unit

PART = "row-curvature"


class RowCurvatures:
    """Sums over tokens, by the node that owns the matrix."""

    def __init__(self, graph: LayerGraph, head: str) -> None:
        """``head`` is the output head's node."""
        self.graph, self.sums = graph, dict[str, Tensor]()
        owned = {node.name: node for node in graph.vocabulary()}
        owner = graph.owner(head)
        self.head = owner if owner in owned else None
        found = (node.name for node in owned.values() if node.op == EMBEDDING)
        self.embedding, self.embedded = next(found, None), False

    def add_head(self, hidden: Tensor, unsure: Tensor) -> None:
        """Add what the head reads, ``f32[n, columns]``, and how unsure each place is, f32[n]."""
        if self.head is not None:
            self._add(self.head, hidden * unsure.sqrt()[:, None])

    def add_embedding(self, slopes: Mapping[str, Tensor]) -> None:
        """Add tokens: derivatives by what is held before the first region.

        Only where the embedding itself is held there: what is computed between both is not undone.
        """
        if self.embedding is not None and self.embedding in slopes:
            self.embedded = True
            self._add(self.embedding, slopes[self.embedding].flatten(0, -2))

    def _add(self, name: str, vectors: Tensor) -> None:
        found = product(vectors.T, vectors)
        self.sums[name] = found if name not in self.sums else self.sums[name].add_(found)

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
                unit.remark("missed", node, reason="neither first block nor head reads it as it is")
                continue
            mean = found / positions
            if not bool(mean.isfinite().all()):
                raise NotFinite(
                    "the loss bends with the rows of a matrix by more than fp32 can hold",
                    where=[f"%{node.name}"],
                    help="leave vocabulary=true out of guide, and rounding=guided of "
                    "quantize-vocab; look for weights that are huge or not finite",
                )
            if node.name == self.embedding and not self.embedded:
                unit.remark("missed", node, reason="the first block does not read it as it is")
            tensor = unit.put_aside(table_key(node.name, PART), mean.cpu())
            size = float(mean.diagonal().double().mean())
            unit.annotate(node, RowCurvature(tensor=tensor, positions=positions, size=size))


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


def foresee_rows(unit: Forecast, node: Node, positions: int) -> None:
    """Say that a matrix will have a curvature of its rows."""
    tensor = unit.put_aside(table_key(node.name, PART), node.columns, node.columns)
    unit.annotate(node, RowCurvature(tensor=tensor, positions=positions, size=0))
