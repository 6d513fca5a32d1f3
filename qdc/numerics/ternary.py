"""Fit three equally spaced levels to each row of a block: shift - scale, shift, shift + scale.

Source: PT2-LLM, arXiv 2510.03267: iterative ternary fitting, which alternates levels and codes on
the weights alone, and activation-aware grid alignment, which refits the levels to what the inputs
make of an error, the codes fixed. related-systems.md 2 and 18.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Start = Literal["scale", "threshold"]
"""Whether 0.75 of the mean deviation is the first scale, or the first threshold of the codes."""
Update = Literal["joint", "alternating"]
Keep = Literal["last", "previous"]
SHARE = 0.75
"""Of a row's mean deviation from its mean: where the fit starts."""
SINGULAR = 1e-9
"""Share of the product of its diagonal below which a 2 x 2 system is not solved."""


class Ternary(NamedTuple):
    """A block of ternary codes and the levels of its rows, not rounded to what is stored.

    Attributes:
        codes: f32[n, g], -1, 0 or +1.
        scale: f32[n], >= 0.
        shift: f32[n].
        iterations: Updates that were made until this.
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor
    iterations: int = 0


class Levels(NamedTuple):
    """Levels that cost least for given codes, f64[n], and what follows if a scale is rounded.

    Attributes:
        scale: Of each row; negative where the codes have the wrong sign.
        shift: Of each row.
        slope: What the best shift loses for each unit that the scale gains.
        solvable: bool[n]. Where not, the codes of a row do not tell scale from shift, and the other
            three mean nothing.
    """

    scale: Tensor
    shift: Tensor
    slope: Tensor
    solvable: Tensor

    def upright(self, codes: Tensor) -> tuple["Levels", Tensor]:
        """The same levels with no scale below 0: codes f32[n, g] change their sign instead."""
        sign = torch.where(self.scale < 0, -1.0, 1.0).to(self.scale.dtype)
        levels = self._replace(scale=self.scale * sign, slope=self.slope * sign)
        return levels, codes * sign[:, None].to(codes.dtype)


def nearest_codes(values: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Codes of the nearest levels; in the middle between two it is 0, and with scale 0 always.

    Args:
        values: f32[...].
        scale: f32, broadcastable to ``values``, >= 0.
        shift: f32, broadcastable to ``values``.

    Returns:
        f32[...], -1, 0 or +1.
    """
    centred = values - shift
    beyond = (centred.abs() > scale / 2) & (scale > 0)
    return centred.sign() * beyond


def fit_ternary(
    block: Tensor,
    iterations: int = 100,
    start: Start = "scale",
    update: Update = "joint",
    keep: Keep = "last",
) -> Ternary:
    """Alternate levels and codes until no code of the block changes: least squares on weights.

    With ``joint`` updates the squared error of no row rises, but for fp32 rounding, and so it is
    with ``alternating`` ones. Rows share nothing but the moment at which all of them stop.

    Args:
        block: f32[n, g].
        iterations: Most updates.
        start: ``scale``: the first scale is 0.75 of the mean deviation. ``threshold``: that is the
            first threshold, and the scale is the mean deviation beyond it.
        update: Scale and shift together, or shift first and then the scale with that shift.
        keep: The last iterate, or as the release does the one before it.

    Returns:
        The fit.
    """
    fitted = previous = _start(block, start)
    for _ in range(iterations):
        following = _update(block, fitted, update)
        settled = torch.equal(following.codes, fitted.codes)
        previous, fitted = fitted, following
        if settled:
            break
    return previous if keep == "previous" else fitted


def best_levels(block: Tensor, codes: Tensor, metric: Tensor) -> Levels:
    """Scale and shift of each row that cost least in a metric, the codes fixed; fp64 throughout.

    Each row is a system of two unknowns. With the moment of the block's inputs as the metric it is
    the published grid alignment; how the moment is normalised does not matter.

    Args:
        block: f32[n, g], what is to be met.
        codes: f32[n, g].
        metric: f32[g, g], symmetric, positive semidefinite: the error E costs tr(E metric E^T).

    Returns:
        The levels.
    """
    wide, target, m = codes.double(), block.double(), metric.double()
    weighted, ones = wide @ m, m.sum(1)
    code_code, code_one, one_one = (weighted * wide).sum(1), wide @ ones, ones.sum()
    code_weight, one_weight = (weighted * target).sum(1), target @ ones
    determinant = code_code * one_one - code_one.square()
    return Levels(
        (one_one * code_weight - code_one * one_weight) / determinant,
        (code_code * one_weight - code_one * code_weight) / determinant,
        code_one / one_one,
        determinant > SINGULAR * code_code * one_one,
    )


def _start(block: Tensor, start: Start) -> Ternary:
    shift = block.mean(1)
    centred = block - shift[:, None]
    share = SHARE * centred.abs().mean(1)
    if start == "scale":
        return Ternary(nearest_codes(block, share[:, None], shift[:, None]), share, shift)
    codes = centred.sign() * (centred.abs() > share[:, None])
    return Ternary(codes, _scale(centred, codes, share), shift)


def _update(block: Tensor, fitted: Ternary, update: Update) -> Ternary:
    codes = fitted.codes
    if update == "alternating":
        shift = (block - fitted.scale[:, None] * codes).mean(1)
        scale = _scale(block - shift[:, None], codes, fitted.scale)
    else:
        centred, mean = codes - codes.mean(1, keepdim=True), block.mean(1)
        scale = _scale(block - mean[:, None], centred, fitted.scale)
        shift = mean - scale * codes.mean(1)
    codes = nearest_codes(block, scale[:, None], shift[:, None])
    return Ternary(codes, scale, shift, fitted.iterations + 1)


def _scale(centred: Tensor, codes: Tensor, otherwise: Tensor) -> Tensor:
    """The best scale of each row for its codes; another where all of them are 0."""
    squares = codes.square().sum(1)
    best = (codes * centred).sum(1) / squares
    return torch.where(squares > 0, best, otherwise)
