"""Quantize a layer block by block where each block takes the columns that are most alike.

Source: PT2-LLM, arXiv 2510.03267, structural-similarity reordering as its release runs it: before
each block, of the columns that are left and have been compensated, those that point most in the
direction of the mean. The release factorizes the permuted moment anew for each block; here the
inverse moment of the columns that are left is carried along, which gives the same factor.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.numerics.feedback import Compensation, quantize_blocks


class Drift(NamedTuple):
    """What columns hand on of the drift of their inputs (GPTAQ's term).

    Attributes:
        cross: f32[m, m], D, normalised as the moment is.
        share: The term is multiplied by this.
        inside: Whether columns of one block hand it on to each other too.
    """

    cross: Tensor
    share: float
    inside: bool = True


def similar_columns(weight: Tensor, width: int) -> Tensor:
    """Choose the columns that are most alike: of the largest cosine with the mean direction.

    Args:
        weight: f32[n, m].
        width: How many to choose; all if there are fewer.

    Returns:
        i64[min(width, m)], ascending. Of equal columns the first come first; a column of zeros has
        no direction, and counts as orthogonal to the mean.
    """
    length = weight.norm(dim=0)
    unit = weight / torch.where(length > 0, length, 1.0)
    likeness = unit.mean(dim=1) @ unit
    chosen: Tensor = likeness.argsort(descending=True, stable=True)[:width].sort().values
    return chosen


def quantize_reordered(
    weight: Tensor,
    upper: Tensor,
    width: int,
    compensation: Compensation,
    quantize: Callable[[Tensor, Tensor, Tensor], Tensor],
    drift: Drift | None = None,
    choose: Callable[[Tensor, int], Tensor] = similar_columns,
) -> tuple[Tensor, Tensor]:
    """Choose the columns of a block, quantize it, compensate in all columns left; then the next.

    Args:
        weight: f32[n, m], not modified.
        upper: f32[m, m], factor of the damped inverse moment, columns in their own order.
        width: Columns of a block; the last one may be narrower.
        compensation: As for ``quantize_blocks``.
        quantize: Called as ``quantize(block, columns, triangle)`` with the block as changed by
            those before, where its columns stand in the layer, i64[g], and its part of the factor
            of the moment in the new order, f32[g, g]; returns the block written out.
        drift: What each column hands on to those after it, in the new order.
        choose: Called as ``choose(left, width)``; returns places of ``left``, each once.

    Returns:
        The permutation, i64[m]: which column stands at each place; and f32[n, m], the quantized
        blocks side by side in that order.
    """
    wide = upper.double()
    inverse = wide.T @ wide
    rest = weight
    left = torch.arange(weight.shape[1], device=weight.device)
    order: list[Tensor] = []
    blocks: list[Tensor] = []
    while len(left):
        places = _first(choose(rest, width), len(left))
        count = min(width, len(left))
        rest, left, inverse = rest[:, places], left[places], inverse[places][:, places]
        columns = left[:count]
        factor, inverse = _advance(inverse, count)
        term = None if drift is None else _term(drift, left, factor, inverse)

        def quantize_first(
            index: int, block: Tensor, columns: Tensor = columns, factor: Tensor = factor
        ) -> Tensor:
            """The chosen columns are quantized; those after them only take over the error."""
            if index:
                return block
            return quantize(block, columns, factor[:, : len(columns)].float())

        slices = [s for s in (slice(0, count), slice(count, len(left))) if s.start < s.stop]
        whole = _padded(factor).float()
        result = quantize_blocks(rest, whole, slices, compensation, quantize_first, term)
        order.append(columns)
        blocks.append(result[:, :count])
        rest, left = result[:, count:], left[count:]
    return torch.cat(order), torch.cat(blocks, dim=1)


def _first(chosen: Tensor, count: int) -> Tensor:
    """The chosen places, then all others in their order: i64[count]."""
    others = torch.ones(count, dtype=torch.bool, device=chosen.device)
    others[chosen] = False
    return torch.cat([chosen, others.nonzero()[:, 0]])


def _advance(inverse: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Split the inverse moment of the columns that are left.

    Args:
        inverse: f64[k, k], the columns of the block first.
        count: Columns of the block.

    Returns:
        The block's rows of the factor, f64[count, k], and the inverse moment of the columns after
        it, f64[k - count, k - count]: the Schur complement.
    """
    triangle = torch.linalg.cholesky(inverse[:count, :count], upper=True)
    later = torch.linalg.solve_triangular(triangle.T, inverse[:count, count:], upper=False)
    return torch.cat([triangle, later], dim=1), inverse[count:, count:] - later.T @ later


def _term(drift: Drift, left: Tensor, factor: Tensor, inverse: Tensor) -> Tensor:
    """The block's rows of ``asymmetry.asymmetry_term``, which no order of later columns changes.

    Args:
        drift: The cross moment in the layer's order.
        left: i64[k], the columns that are left, those of the block first.
        factor: f64[g, k], the block's rows of the factor.
        inverse: f64[k - g, k - g], the inverse moment of the columns after the block.

    Returns:
        f32[k, k], zero but for the block's rows.
    """
    count = len(factor)
    cross = drift.cross[left[:count]][:, left].double()
    rows = (cross @ factor.T).triu(1) @ factor
    rows[:, count:] += cross[:, count:] @ inverse
    if not drift.inside:
        rows[:, :count] = 0
    return _padded(drift.share * rows.triu(1)).float()


def _padded(rows: Tensor) -> Tensor:
    """Rows of zeros below these, until it is square."""
    below = rows.new_zeros(rows.shape[1] - len(rows), rows.shape[1])
    return torch.cat([rows, below])
