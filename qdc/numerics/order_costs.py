"""What each block of a layer costs at each order, on the way through the layer at one order."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.numerics.binarygrid import BinaryGrid
from qdc.numerics.columns import Metric, block_cost, block_metric, quantize_block
from qdc.numerics.components import dense
from qdc.numerics.feedback import quantize_blocks
from qdc.numerics.multibinary import fit

Fit = Callable[[Tensor, int, Metric], Tensor]
"""A block, an order, the block's metric: gives the block written out at that order."""


class OrderCosts(NamedTuple):
    """What a walk through a layer found.

    Attributes:
        blocks: For each block its cost at each of the orders asked for, in output^2.
        dense: f32[n, m], the layer quantized at the base order.
    """

    blocks: tuple[tuple[float, ...], ...]
    dense: Tensor


def order_costs(
    weight: Tensor,
    upper: Tensor,
    slices: Sequence[slice],
    orders: Sequence[int],
    base: int,
    quantize: Fit,
) -> OrderCosts:
    """Fit each block at all orders, as the blocks before it have changed it at the base order.

    The cost is ||(W_b - Q_b) U_bb^-1||_F^2 (quant-dllm.md 2.6): the rise of the layer's squared
    output error that no later block can take back. The blocks' costs at the base order add up to
    the error of the walk.

    Args:
        weight: f32[n, m], not modified.
        upper: f32[m, m], factor of the damped inverse moment.
        slices: The blocks' columns, as for ``quantize_blocks``.
        orders: Orders to fit; ``base`` is one of them.
        base: Order whose error is compensated in later blocks.
        quantize: How a block is fitted.
    """
    found: list[tuple[float, ...]] = []

    def walk(index: int, block: Tensor) -> Tensor:
        part = slices[index]
        metric = block_metric(upper[part, part])
        written = [quantize(block, order, metric) for order in orders]
        found.append(tuple(block_cost(block, each, metric) for each in written))
        return written[list(orders).index(base)]

    walked = quantize_blocks(weight, upper, slices, "exact", walk)
    return OrderCosts(tuple(found), walked)


def fitter(
    sweeps: int, tolerance: float, scale_bits: int, *, feedback: bool, rounds: int, code_sweeps: int
) -> Fit:
    """Give the fit of a block: unweighted, with column feedback on top if asked for.

    Args:
        sweeps: As for ``fit``.
        tolerance: As for ``fit``.
        scale_bits: As for ``fit``.
        feedback: Choose the signs anew column by column, as ``quantize_block`` does.
        rounds: As for ``quantize_block``.
        code_sweeps: Its ``sweeps``.
    """

    def quantize(block: Tensor, order: int, metric: Metric) -> Tensor:
        fitted, _ = fit(
            block, order, torch.ones_like(block), sweeps, tolerance, scale_bits=scale_bits
        )
        written = dense(fitted)
        if not feedback:
            return written
        grid = BinaryGrid(fitted, scale_bits)
        return quantize_block(block, written, grid, metric, rounds=rounds, sweeps=code_sweeps)[1]

    return quantize
