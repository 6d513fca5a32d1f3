"""How wrong the output of a quantized layer is."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class OutputError(NamedTuple):
    """The relative output error of a layer: ``total``, and the share of each block in it."""

    total: float
    blocks: tuple[float, ...]
    """They add up to ``total``; empty where that is infinite."""


def relative_output_error(weight: Tensor, dense: Tensor, moment: Tensor) -> float:
    """Squared output error as a share of the squared output (quant-dllm.md 2.2).

    tr(E M E^T) / tr(W M W^T) with E = W - Q and the undamped moment M, in fp64: compensation
    works by cancellation, which fp32 would blur.

    Args:
        weight: f32[n, m].
        dense: f32[n, m], quantized.
        moment: f32[m, m], second moment of the input.

    Returns:
        The share, not negative; 0 if neither the error nor the layer has an output, infinite if
        only the error has.
    """
    return block_errors(weight, dense, moment, (slice(None),)).total


def block_errors(
    weight: Tensor, dense: Tensor, moment: Tensor, parts: Sequence[slice]
) -> OutputError:
    """Split the relative output error among blocks of columns.

    A block's share is the sum of (E M) * E over its columns, divided by tr(W M W^T): its own term
    tr(E_b M_bb E_b^T) and half of each of its cross terms. Under compensation a cross term is what
    later blocks take back, so the share is what the block costs after them; it may fall a little
    below zero.

    Args:
        weight: f32[n, m].
        dense: f32[n, m], quantized.
        moment: f32[m, m], second moment of the input.
        parts: adjoining slices that cover the columns.

    Returns:
        The total as ``relative_output_error`` defines it, and one share a part.
    """
    exact = weight.to(torch.float64)
    metric = moment.to(torch.float64)
    error = exact - dense.to(torch.float64)
    columns = ((error @ metric) * error).sum(0)
    wrong = max(float(columns.sum()), 0.0)
    whole = float(((exact @ metric) * exact).sum())
    if wrong == 0.0:
        return OutputError(0.0, (0.0,) * len(parts))
    if whole <= 0:
        return OutputError(float("inf"), ())
    shares = torch.stack([columns[part].sum() for part in parts]) / whole
    return OutputError(wrong / whole, tuple(shares.tolist()))
