"""How the loss bends with the outputs of layers: summed over tokens, and kept in files."""

from collections.abc import Mapping

from torch import Tensor

from qdc.errors import NotFinite
from qdc.ir.curvature import OutputCurvature
from qdc.ir.graph import Node
from qdc.ir.keys import table_key
from qdc.numerics.products import product
from qdc.streaming.forecast import Forecast
from qdc.streaming.unit import Unit


def add_products(totals: dict[str, Tensor], name: str, slopes: Tensor) -> None:
    """Add sum over tokens of g g^T, f32[rows, rows], of derivatives ``f32[..., rows]``."""
    flat = slopes.flatten(0, -2)
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
        size = float(mean.diagonal().double().mean())
        if not bool(mean.isfinite().all()):
            raise NotFinite(
                "the loss bends with the outputs of a layer by more than fp32 can hold",
                where=[f"%{name}"],
                help="leave outputs=true out of guide, and outputs=guided of the passes behind it; "
                "look for weights of the layers behind this one that are huge or not finite",
            )
        tensor = unit.put_aside(table_key(name, "curvature"), mean.cpu())
        fresh = OutputCurvature(tensor=tensor, positions=max(1, now), size=size)
        unit.annotate(unit.graph[name], fresh)


def tell_flat(unit: Unit) -> None:
    """Remark layers without any curvature, as experts that no token was routed to.

    Their outputs all count alike then, and allocate-rates takes them for layers as usual.
    """
    for node in unit.layers():
        if not unit.graph.require(node.name, OutputCurvature).size:
            unit.remark("missed", node, reason="no prediction hangs on its outputs")


def foresee(unit: Forecast, node: Node, positions: int) -> None:
    """Say that a layer will have a curvature."""
    tensor = unit.put_aside(table_key(node.name, "curvature"), node.rows, node.rows)
    unit.annotate(node, OutputCurvature(tensor=tensor, positions=positions, size=0))
