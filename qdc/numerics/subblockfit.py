"""First levels of ggml's blocks: a search over ranges, and one number for many.

Steps and minima of sub-blocks are found first, each for itself; then they are written as integers
times the super-scales of their block.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.numerics.ggmltypes import BlockType

SHRINKS = (1.15, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4)
"""Shares of a sub-block's range that the first fit tries."""
SHARES = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05)
"""The same for super-scales: shares of the one that the largest sub-block would need."""
TINY = 1e-30
"""Stands for 0 in a divisor."""


class Levels(NamedTuple):
    """The levels ``step * code - minimum`` of each sub-block, both ``f32[..., S]``."""

    step: Tensor
    minimum: Tensor


def round_to_levels(values: Tensor, levels: Levels, kind: BlockType) -> Tensor:
    """Nearest codes, as f32; 0 where the step is 0.

    Args:
        values: f32[..., S, w].
        levels: of the sub-blocks.
        kind: gives the range of the codes.
    """
    step, minimum = levels.step[..., None], levels.minimum[..., None]
    lowest, highest = kind.codes
    live = step != 0
    places = (values + minimum) / torch.where(live, step, 1.0)
    if kind.step == 2:
        return torch.where(places < 0, -1.0, 1.0)
    return places.round_().clamp_(lowest, highest).mul_(live)


def searched(parts: Tensor, costs: Tensor, kind: BlockType) -> Levels:
    """The best step and minimum of each sub-block f32[n, S, w], not yet rounded."""
    best = Levels(torch.zeros_like(parts[..., 0]), torch.zeros_like(parts[..., 0]))
    least = torch.full_like(best.step, torch.inf)
    for start in _ranges(parts, kind):
        for levels in (start, _least_squares(parts, costs, start, kind)):
            codes = round_to_levels(parts, levels, kind)
            error = codes * levels.step[..., None] - levels.minimum[..., None] - parts
            loss = (error.square() * costs).sum(-1)
            better = loss < least
            least = torch.where(better, loss, least)
            best = Levels(*(torch.where(better, b, a) for a, b in zip(best, levels, strict=True)))
    return best


def _ranges(parts: Tensor, kind: BlockType) -> Iterator[Levels]:
    """Levels that span a share of the range of each sub-block."""
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    lowest, highest = kind.codes
    nothing = torch.zeros_like(low)
    if kind.step == 2:
        yield Levels(parts.abs().mean(-1), nothing)
        return
    for share in SHRINKS:
        if kind.minima:
            yield Levels((high - low) * share / (highest - lowest), -low * share)
            continue
        reach = share * torch.maximum(high, -low) / max(-lowest, highest)
        yield Levels(reach, nothing)
        if kind.scales is None or kind.scales[0] < 0:
            yield Levels(-reach, nothing)


def _least_squares(parts: Tensor, costs: Tensor, levels: Levels, kind: BlockType) -> Levels:
    """The best levels for the codes that ``levels`` gives, errors of columns apart."""
    codes = round_to_levels(parts, levels, kind)
    energy = (costs * codes.square()).sum(-1)
    reached = (costs * codes * parts).sum(-1)
    if not kind.minima:
        return Levels(reached / energy.clamp(min=TINY), levels.minimum)
    total, mean = costs.sum(-1).expand_as(energy), (costs * codes).sum(-1)
    offset = (costs * parts).sum(-1)
    determinant = energy * total - mean.square()
    solvable = determinant > 1e-5 * energy * total
    safe = torch.where(solvable, determinant, 1.0)
    step = torch.where(solvable, (reached * total - offset * mean) / safe, levels.step)
    minimum = ((step * mean - offset) / total).clamp(min=0)
    # The minimum may have been held at 0, which gives another best step.
    step = (reached + minimum * mean) / energy.clamp(min=TINY)
    return Levels(step.clamp(min=0), minimum)


def shared(values: Tensor, weights: Tensor, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """Write numbers f32[n, S] as one fp16 number a row times integers, errors weighted.

    Returns:
        The number f32[n], and the integers f32[n, S].
    """
    place = values.abs().argmax(1, keepdim=True)
    extreme = values.gather(1, place)[:, 0]
    best = torch.zeros_like(extreme), torch.zeros_like(values)
    least = torch.full_like(extreme, torch.inf)
    ends = (highest,) if lowest == 0 else (highest, lowest)
    for end in ends:
        for share in SHARES:
            number = half(extreme * share / end)
            for _ in range(2):
                whole = (values / divisor(number)[:, None]).round().clamp(lowest, highest)
                loss = ((number[:, None] * whole - values).square() * weights).sum(1)
                better = loss < least
                least = torch.where(better, loss, least)
                best = (
                    torch.where(better, number, best[0]),
                    torch.where(better[:, None], whole, best[1]),
                )
                energy = (weights * whole.square()).sum(1)
                number = half((weights * whole * values).sum(1) / energy.clamp(min=TINY))
    if not bool(half(extreme / highest).isfinite().all()):
        raise OverflowError("a scale of a block is not finite in fp16")
    return best


def divisor(values: Tensor) -> Tensor:
    """The numbers, and 1 where they are 0."""
    return torch.where(values != 0, values, 1.0)


def half(values: Tensor) -> Tensor:
    """Rounded to fp16."""
    return values.half().float()
