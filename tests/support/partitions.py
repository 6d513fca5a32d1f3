"""Passes over partitioned blocks, run on one layer; and the blocks' loop written out by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdc.format.codec import Lowered
from qdc.ir.annotations import Factor
from qdc.ir.verify import verify
from qdc.numerics.blocks import BLOCK, block_slices
from qdc.numerics.feedback import residual_cost
from qdc.pipeline.passbase import Pass
from qdc.streaming.unit import Unit
from tests.support.units import make_unit, put_statistics

Array = NDArray[Any]


def lowered(
    kind: type[Pass], weight: Tensor, moment: Tensor, **options: Any
) -> tuple[Unit, Tensor]:
    """The unit after the pass, and the layer written out; packing it is exact."""
    unit = make_unit(kind.model_validate(options), {"q": weight})
    put_statistics(unit, moment, (2,) * len(block_slices(weight.shape[1])))
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after=kind.name)
    note = unit.graph.require("q", Lowered)
    working = note.working(unit.tensors)
    note.codec.pack_exactly(working, "q")
    return unit, note.codec.dense(working)


def upper_of(unit: Unit) -> Tensor:
    """The factor of the unit's layer."""
    return unit.get(unit.graph.require("q", Factor).tensor)


def cost(unit: Unit, weight: Tensor, dense: Tensor) -> float:
    """Output error in the metric that a lowering works in."""
    return residual_cost(weight, dense, upper_of(unit))


def block_loop(weight: Tensor, upper: Tensor, quantize: Callable[[Array, Array], Array]) -> Array:
    """Blocks left to right in fp64, their errors moved on by the diagonal of the factor."""
    rest, triangle = weight.double().numpy().copy(), upper.double().numpy()
    result = np.zeros_like(rest)
    for part in block_slices(weight.shape[1], BLOCK):
        diagonal = np.diag(triangle)[part]
        result[:, part] = quantize(rest[:, part].copy(), diagonal)
        error = (rest[:, part] - result[:, part]) / diagonal
        rest[:, part.stop :] -= error @ triangle[part, part.stop :]
    return result


def residual_by_hand(values: Array, mask: Array, order: int) -> Array:
    """Row by row: a mean and a scale, and again on what is left; zeros outside the mask."""
    result = np.zeros_like(values)
    for row, chosen, out in zip(values, mask, result, strict=True):
        if chosen.any():
            rest, written = row[chosen], np.zeros(int(chosen.sum()))
            for _ in range(order):
                mean = rest.mean()
                scale = np.abs(rest - mean).mean()
                step = mean + scale * np.where(rest - mean >= 0, 1, -1)
                written, rest = written + step, rest - step
            out[chosen] = written
    return result


Search = Callable[[Array, Array, int], Array]


def parts_by_hand(
    salience: Array, fitted: Array, most: int, splits: int, fit: Search, *, zeroed: bool
) -> tuple[Array, Array]:
    """Salient columns bool[g], and bool[n, g] of other elements in the large class."""
    width = salience.shape[1]
    falling = np.argsort(-np.abs(salience).sum(0), kind="stable")
    errors = []
    for k in range(1, min(most, width - 1) + 1):
        mask = np.zeros(salience.shape, dtype=bool)
        mask[:, falling[:k]] = True
        written = fit(fitted, mask, 2) + fit(fitted, ~mask, 2)
        errors.append(((fitted - written) ** 2).sum())
    salient = np.zeros(width, dtype=bool)
    salient[falling[: int(np.argmin(errors)) + 1]] = True
    others = np.broadcast_to(~salient, salience.shape)
    magnitude = np.abs(salience)
    pool = np.where(others, magnitude, 0).ravel() if zeroed else magnitude[others]
    splits_found, errors = [], []
    for share in np.linspace(0.1, 0.9, splits):
        large = others & (magnitude >= np.quantile(pool, share))
        written = fit(fitted, large, 1) + fit(fitted, others & ~large, 1)
        splits_found.append(large)
        errors.append((np.where(others, fitted - written, 0) ** 2).sum())
    return salient, splits_found[int(np.argmin(errors))]


def agree(found: Tensor, expected: Array) -> bool:
    """Equal but for scales rounded to fp16, and the few elements at an edge that they move."""
    wide = found.double().numpy()
    close = np.isclose(wide, expected, rtol=0.01, atol=1e-3)
    distance = np.linalg.norm(wide - expected) / np.linalg.norm(expected)
    return bool(close.mean() > 0.98 and distance < 0.05 and torch.isfinite(found).all())
