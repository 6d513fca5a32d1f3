"""The triangular factor of the inverse second moment, which all error feedback reads."""

from typing import NamedTuple

import torch
from torch import Tensor

from qdc.numerics.blocks import block_slices

PANEL = 512
"""Columns that are factorized at once."""


class FactorizationFailed(ArithmeticError):
    """A second moment that is not finite, or that no allowed damping made positive definite."""


class Factorization(NamedTuple):
    """The factor U of a damped moment M, with inv(M) = U^T U.

    Attributes:
        upper: f32[m, m], upper triangular with a positive diagonal, in 1/input.
        damp: Share of the mean live diagonal that was added to the diagonal in the end.
        attempts: Factorizations tried; 0 when every input is dead and none was needed.
        dead: bool[m], inputs whose second moment is exactly zero.
    """

    upper: Tensor
    damp: float
    attempts: int
    dead: Tensor


def factorize(moment: Tensor, damp: float = 0.01, attempts: int = 9) -> Factorization:
    """Factorize the inverse of a damped second moment (quant-dllm.md 1.5 and 8 M).

    A dead input gets the mean diagonal of the live inputs. The absolute 1 of the released code is
    huge beside inputs of size 1e-3 and nothing beside 1e3, so the damping, which is a share of the
    mean diagonal, would depend on the unit of the inputs; this way it is scale invariant. The
    diagonal is damped once, on a copy: layers that share a moment all see the same one.

    Computed in fp64 and rounded to fp32 at the end. With rows and columns reversed, the Cholesky
    factor of M turns into an upper R with M = R R^T, hence U = R^-1; M is never inverted.

    Args:
        moment: f32 or f64[m, m], symmetric, never modified; only one triangle is read.
        damp: First share of the mean live diagonal to add; 10 times as much at each retry.
        attempts: Most factorizations to try.

    Returns:
        The factor; the identity when the whole moment is zero, so that errors do not spread.

    Raises:
        ValueError: If the moment is not square, ``damp`` is negative or ``attempts`` below 1.
        FactorizationFailed: If the moment is not finite, or stays indefinite.
    """
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1]:
        raise ValueError(f"a moment is square, not {tuple(moment.shape)}")
    if not damp >= 0 or attempts < 1:
        raise ValueError(f"damp {damp} must not be negative, attempts {attempts} at least 1")
    if not bool(moment.isfinite().all()):
        raise FactorizationFailed("the moment holds NaN or infinite entries")
    dead = moment.diagonal() == 0
    if not bool(moment.any()):
        identity = torch.eye(moment.shape[0], dtype=torch.float32, device=moment.device)
        return Factorization(identity, damp, 0, dead)
    reverse_dead = dead.flip(0)
    reverse_diagonal = moment.diagonal().flip(0).to(torch.float64)
    live = reverse_diagonal[~reverse_dead]
    mean = float(live.mean()) if len(live) else 0.0
    if not mean > 0:
        raise FactorizationFailed("the mean diagonal of the moment is not positive")
    diagonal = reverse_diagonal.masked_fill(reverse_dead, mean)
    for attempt in range(attempts):
        share = damp * 10.0**attempt
        lower = _cholesky_reversed(moment, diagonal + share * mean)
        if lower is not None:
            _invert(lower)
            return Factorization(_upper(lower), share, attempt + 1, dead)
    raise FactorizationFailed(f"the moment stays indefinite when damped by {share:g} of its mean")


def factor_bytes(columns: int) -> int:
    """What ``factorize`` takes beside the moment, at most: two fp64 matrices, and one in fp32."""
    return columns**2 * (8 + 8 + 4)


def _cholesky_reversed(moment: Tensor, diagonal: Tensor) -> Tensor | None:
    """Factorize the moment with rows and columns reversed and this diagonal: f64[m, m], or None.

    The widest matrices of a compile are here, so each step is computed in place: in columns, the
    layout that LAPACK takes without a copy. Most of the work is products, which are the fastest of
    what there is in fp64.
    """
    wide = torch.empty(moment.shape, dtype=torch.float64, device=moment.device).T
    wide.copy_(moment.flip(0, 1)).diagonal().copy_(diagonal)
    for part in block_slices(len(wide), PANEL):
        before, after = slice(0, part.start), slice(part.stop, len(wide))
        panel = wide[part.start :, part]
        panel.addmm_(wide[part.start :, before], wide[part, before].T, alpha=-1)
        square, info = torch.linalg.cholesky_ex(wide[part, part])
        if int(info):
            return None
        wide[part, part] = square
        wide[before, part] = 0
        wide[after, part] = torch.linalg.solve_triangular(
            square.T, wide[after, part], upper=True, left=False
        )
    return wide


def _invert(lower: Tensor) -> None:
    """Invert f64[m, m], a lower triangle, in its own place: half by half, zeros left out."""
    size = len(lower)
    if size <= PANEL:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, last, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    inner = torch.linalg.solve_triangular(last, below, upper=False)
    below.copy_(torch.linalg.solve_triangular(first, inner, upper=False, left=False).neg_())
    del inner
    _invert(first)
    _invert(last)


def _upper(inverse: Tensor) -> Tensor:
    """Reverse rows and columns, round to fp32; refuse overflow."""
    upper = inverse.to(torch.float32).flip(0, 1)
    if not bool(upper.isfinite().all()):
        raise FactorizationFailed("the factor of the inverse moment overflows fp32")
    return upper
