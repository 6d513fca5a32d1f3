"""How the loss bends with the outputs of layers: summed over tokens, and kept in files."""

from collections.abc import Mapping

from torch import Tensor

from qdc.errors import NotFinite
from qdc.ir.curvature import Curvature, OutputCurvature, RowCurvature
from qdc.ir.graph import Node
from qdc.ir.keys import table_key
from qdc.numerics.products import product
from qdc.streaming.forecast import Forecast
from qdc.streaming.unit import Unit

WITHOUT: Mapping[type[Curvature], str] = {
    OutputCurvature: "leave outputs=true out of guide, and outputs=guided of the passes behind it",
    RowCurvature: "leave vocabulary=true out of guide, and rounding=guided of quantize-vocab",
}
"""What to do where one cannot be had."""


def add_products(totals: dict[str, Tensor], name: str, vectors: Tensor) -> None:
    """Add sum over tokens of v v^T, f32[n, n], of ``f32[..., n]``."""
    flat = vectors.flatten(0, -2)
    found = product(flat.T, flat)
    totals[name] = found if name not in totals else totals[name].add_(found)


def add_curvatures(unit: Unit, sums: Mapping[str, Tensor], before: int, now: int) -> None:
    """Write the curvature of some layers, with what was written of it for other samples.

    Args:
        unit: the model.
        sums: sum of g g^T over the tokens of some samples, ``f32[rows, rows]`` by layer.
        before: predictions that were looked at before those of these samples.
        now: predictions that were looked at with these.

    Raises:
        NotFinite: a curvature is infinite or not a number.
    """
    for name, found in sums.items():
        note = unit.graph.get(name, OutputCurvature) if before else None
        mean = found / max(1, now)
        if note is not None:
            mean.add_(unit.get(note.tensor), alpha=before / now)
        write_curvature(unit, unit.graph[name], OutputCurvature, mean, max(1, now))


def write_curvature(
    unit: Unit, node: Node, kind: type[Curvature], mean: Tensor, positions: int
) -> None:
    """Put a curvature aside in a file, and annotate its node.

    Args:
        unit: the model.
        node: whose outputs or rows it is of.
        kind: which of both.
        mean: ``f32[n, n]`` for each prediction.
        positions: predictions that were looked at.

    Raises:
        NotFinite: it is infinite or not a number.
    """
    if not bool(mean.isfinite().all()):
        raise NotFinite(
            f"the loss bends with the {kind.each}s of a matrix by more than fp32 can hold",
            where=[f"%{node.name}"],
            help=f"{WITHOUT[kind]}; look for weights that are huge or not finite, also of the "
            "layers behind this one",
        )
    tensor = unit.put_aside(table_key(node.name, kind.tag), mean.cpu())
    size = float(mean.diagonal().double().mean())
    unit.annotate(node, kind(tensor=tensor, positions=positions, size=size))


def tell_flat(unit: Unit) -> None:
    """Remark layers without any curvature, as experts that no token was routed to.

    Their outputs all count alike then, and allocate-rates takes them for layers as usual.
    """
    for node in unit.layers():
        if not unit.graph.require(node.name, OutputCurvature).size:
            unit.remark("missed", node, reason="no prediction hangs on its outputs")


def foresee(unit: Forecast, node: Node, kind: type[Curvature], positions: int) -> None:
    """Say that a node will have a curvature."""
    side = kind.side(node)
    tensor = unit.put_aside(table_key(node.name, kind.tag), side, side)
    unit.annotate(node, kind(tensor=tensor, positions=positions, size=0))
