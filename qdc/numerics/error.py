"""How wrong the output of a quantized layer is."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.numerics.products import product

UNCANCELLED = 1e-2
"""Share of what a layer's output would be if its inputs were independent from which on fp32 tells
it to four digits: below, inputs that move together cancel one another."""
SMALLEST = 1e-30
"""Mean of fp32 terms from which on they lose no digits to the smallest numbers of fp32."""


class OutputError(NamedTuple):
    """The relative output error of a layer: ``total``, and the share of each block in it."""

    total: float
    blocks: tuple[float, ...]
    """They add up to ``total``; empty where that is infinite."""


def relative_output_error(weight: Tensor, dense: Tensor, moment: Tensor) -> float:
    """Squared output error as a share of the squared output (quant-dllm.md 2.2).

    tr(E M E^T) / tr(W M W^T) with E = W - Q and the undamped moment M. The first is taken in fp64:
    compensation works by cancellation, which fp32 would blur. So is the second where inputs
    cancel or leave the range of fp32; as a rule they do neither, and its products are fp32.

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
    columns = weight.shape[1]
    cuts = [slice(*part.indices(columns)) for part in parts]
    error = weight.to(torch.float64).sub_(dense)
    shares = torch.zeros(len(cuts), dtype=torch.float64)
    for place, part in enumerate(cuts):
        # What two blocks have in common is half of it the one's and half the other's.
        later = slice(part.start, columns)
        common = ((error[:, part].T @ error[:, later]) * moment[part, later]).sum(0)
        terms = torch.stack(
            [common[c.start - part.start :][: c.stop - c.start].sum() for c in cuts[place:]]
        ).cpu()
        shares[place:] += terms
        shares[place] += terms[1:].sum()
    wrong = max(float(shares.sum()), 0.0)
    if wrong == 0.0:
        return OutputError(0.0, (0.0,) * len(parts))
    del error
    whole = _squared_output(weight, moment)
    if whole <= 0:
        return OutputError(float("inf"), ())
    return OutputError(wrong / whole, tuple((shares / whole).tolist()))


def _squared_output(weight: Tensor, moment: Tensor) -> float:
    """tr(W M W^T), in fp64 where fp32 would not tell it."""
    single, metric = weight.to(torch.float32), moment.to(torch.float32)
    apart = float((single.square() @ metric.diagonal()).sum(dtype=torch.float64))
    if SMALLEST * single.numel() < apart < math.inf:
        whole = float(product(single, metric).mul_(single).sum(dtype=torch.float64))
        if UNCANCELLED * apart < whole < math.inf:
            return whole
    exact = weight.to(torch.float64)
    return float((exact @ moment.to(torch.float64)).mul_(exact).sum())
