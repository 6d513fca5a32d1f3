"""Coordinate sweeps for codes that stand for several columns at once.

Source: related-systems.md 14 (QuIP#, arXiv 2402.04396) and A4. The loss of a block of columns, all
others fixed, is quadratic around the place where they would best be; the codebook's nearest point
to that place is the next candidate. Nearest is meant without the loss's own metric, so a candidate
may be worse than what is there, and is then left.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def moment_of(upper: Tensor) -> Tensor:
    """Compute the damped moment M = inv(U^T U) of a factor, f32[m, m], in fp64 inside."""
    wide = upper.to(torch.float64)
    identity = torch.eye(len(wide), dtype=torch.float64, device=wide.device)
    inverse = torch.linalg.solve_triangular(wide, identity, upper=True)
    moment: Tensor = (inverse @ inverse.T).float()
    return moment


def vector_sweeps(
    weight: Tensor,
    dense: Tensor,
    moment: Tensor,
    slices: Sequence[slice],
    quantize: Callable[[int, Tensor], Tensor],
    sweeps: int,
) -> Tensor:
    """Move one block of columns at a time to where the others want it.

    Args:
        weight: f32[n, m], W.
        dense: f32[n, m], Q, not modified.
        moment: f32[m, m], M: an error costs tr(E M E^T), which never rises but for rounding.
        slices: The columns that a code stands for, in the order in which they are visited.
        quantize: Called as ``quantize(index, place)``; returns points near f32[n, g].
        sweeps: Rounds over all blocks.

    Returns:
        f32[n, m], made of points that ``quantize`` returned, or that were there.
    """
    current = dense.clone()
    gradient = (weight - current) @ moment
    inverses = [torch.linalg.inv(moment[p, p].double()).float() for p in slices]
    for _ in range(sweeps):
        for index, part in enumerate(slices):
            held, slope = current[:, part], gradient[:, part]
            step = quantize(index, held + slope @ inverses[index]) - held
            change = ((step @ moment[part, part] - 2 * slope) * step).sum(1)
            step = torch.where(change[:, None] < 0, step, 0.0)
            current[:, part] = held + step
            gradient.addmm_(step, moment[part], alpha=-1)
    return current
