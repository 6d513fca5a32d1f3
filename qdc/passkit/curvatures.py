"""How the loss bends with the outputs of layers: summed over tokens, and kept in files."""

from collections.abc import Mapping

from torch import Tensor

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
    """
    for name, found in sums.items():
        note = unit.graph.get(name, OutputCurvature) if before else None
        mean = found / max(1, now)
        if note is not None:
            mean.add_(unit.get(note.tensor), alpha=before / now)
        size = float(mean.diagonal().double().mean())
        tensor = unit.put_aside(table_key(name, "curvature"), mean.cpu())
        fresh = OutputCurvature(tensor=tensor, positions=max(1, now), size=size)
        unit.annotate(unit.graph[name], fresh)


def foresee(unit: Forecast, node: Node, positions: int) -> None:
    """Say that a layer will have a curvature."""
    tensor = unit.put_aside(table_key(node.name, "curvature"), node.rows, node.rows)
    unit.annotate(node, OutputCurvature(tensor=tensor, positions=positions, size=0))
