"""Uniform grids, one a row: how they are fitted, rounded to, and written out."""

from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from qdc.numerics.fields import pack_codes, unpack_codes

__all__ = [
    "NORM",
    "Search",
    "Uniform",
    "Zero",
    "dense_uniform",
    "fit_grid",
    "fit_uniform",
    "pack_codes",
    "round_to_grid",
    "unpack_codes",
]

Search = Literal["minmax", "clip"]
Zero = Literal["float", "packed"]
SHRINKS: Final = 80
"""Ranges that a clip search tries: 100 %, 99 %, ... of that from minimum to maximum."""
NORM: Final = 2.4
"""Exponent of its loss, as in GPTQ's quantizer: large errors count more than in squares."""
AT_ONCE: Final = 1 << 20
"""Weights times ranges that a clip search holds in memory together."""


class Uniform(NamedTuple):
    """A block on one uniform grid a row: w ~ scale * code + minimum.

    Attributes:
        codes: uint8[n, g].
        scale: f32[n], step of the grid, >= 0, fits fp16 exactly; 0 for a constant row.
        minimum: f32[n], value of code 0: fits fp16 exactly, or is -zero * scale, with zero a code.
    """

    codes: Tensor
    scale: Tensor
    minimum: Tensor


def fit_uniform(
    block: Tensor,
    bits: int,
    search: Search = "minmax",
    zero: Zero = "float",
    norm: float = NORM,
) -> Uniform:
    """Round each row of a block to its own grid; the arguments are those of ``fit_grid``.

    Scale and minimum are rounded first; codes are then the nearest on the rounded grid (ties to
    even), clamped to it. A constant row is its fp16 rounding (``zero="float"``).
    """
    scale, minimum = fit_grid(block, bits, search, zero, norm)
    return Uniform(round_to_grid(block, scale, minimum, bits).to(torch.uint8), scale, minimum)


def fit_grid(
    block: Tensor,
    bits: int,
    search: Search = "minmax",
    zero: Zero = "float",
    norm: float = NORM,
) -> tuple[Tensor, Tensor]:
    """Fit a grid to each row of a block, rounded to what is stored.

    Args:
        block: f32[n, g].
        bits: Bits of a code, 1..8.
        search: ``minmax`` spans the range of the row; ``clip`` shrinks it towards zero in 80 steps
            to a fifth, and takes the range of least loss.
        zero: ``float`` stores the minimum in fp16. ``packed`` stores the code that stands for 0,
            so that 0 is always a level.
        norm: The loss of ``clip`` is the sum of |error|^norm.

    Returns:
        Scale f32[n] and minimum f32[n], as in ``Uniform``.

    Raises:
        ValueError: If ``bits`` is out of range or a weight is not finite.
        OverflowError: If a scale or minimum is not finite in fp16.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"a code has 1 to 8 bits, not {bits}")
    if not bool(block.isfinite().all()):
        raise ValueError("the block holds NaN or infinite numbers")
    low, high = block.amin(dim=1), block.amax(dim=1)
    if search == "minmax":
        scale, minimum = _stored(low, high, bits, zero)
    else:
        scale, minimum = _clipped(block, low, high, bits, zero, norm)
    if not bool(minimum.isfinite().all() & scale.isfinite().all()):
        raise OverflowError("a scale or minimum of the block is not finite in fp16")
    return scale, minimum


def round_to_grid(values: Tensor, scale: Tensor, minimum: Tensor, bits: int) -> Tensor:
    """Nearest codes, ties to even, clamped to the grid.

    Args:
        values: f32[..., n] or f32[..., n, g].
        scale: f32[..., n], >= 0.
        minimum: f32[..., n].
        bits: Bits of a code.

    Returns:
        Codes as f32, of the shape of ``values`` (and of more leading dimensions of the grids).
    """
    if values.ndim > 1:
        scale, minimum = scale[..., None], minimum[..., None]
    live = scale > 0
    steps = (values - minimum) / torch.where(live, scale, 1.0)
    return steps.round_().clamp_(0, 2**bits - 1).mul_(live)


def dense_uniform(u: Uniform) -> Tensor:
    """Write a block out: scale * code + minimum in fp32, product exact, sum rounded once.

    Args:
        u: Codes and grids.

    Returns:
        f32[n, g], in units of the weight.
    """
    return (u.scale[:, None] * u.codes).add_(u.minimum[:, None])


def _stored(low: Tensor, high: Tensor, bits: int, zero: Zero) -> tuple[Tensor, Tensor]:
    """The grid from ``low`` to ``high``, both f32[...], rounded to what is stored."""
    highest = 2**bits - 1
    if zero == "packed":
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / highest).to(torch.float16).to(torch.float32)
    if zero == "float":
        return scale, low.to(torch.float16).to(torch.float32)
    code = (-low / torch.where(scale > 0, scale, 1.0)).round().clamp(0, highest)
    return scale, 0 - code * scale


def _clipped(
    block: Tensor, low: Tensor, high: Tensor, bits: int, zero: Zero, norm: float
) -> tuple[Tensor, Tensor]:
    """The best of ``SHRINKS`` ranges for each row; the wider one of equals."""
    shares = torch.arange(SHRINKS, device=block.device) / 100
    centre = torch.zeros_like(low).clamp(low, high)
    many = max(1, AT_ONCE // block.numel())
    losses, scales, minima = [], [], []
    for share in torch.split(shares, many):
        lows = low - share[:, None] * (low - centre)
        highs = high - share[:, None] * (high - centre)
        scale, minimum = _stored(lows, highs, bits, zero)
        error = round_to_grid(block, scale, minimum, bits).mul_(scale[..., None])
        error.add_(minimum[..., None]).sub_(block)
        powers = error.square_() if norm == 2 else error.abs_().pow_(norm)
        losses.append(powers.sum(-1))
        scales.append(scale)
        minima.append(minimum)
    # A grid beyond fp16 has no finite loss.
    loss = torch.cat(losses).nan_to_num(nan=torch.inf)
    choice = loss.argmin(0, keepdim=True)
    return torch.cat(scales).gather(0, choice)[0], torch.cat(minima).gather(0, choice)[0]
