"""The E8P codebook: 65,536 points of a shifted E8 lattice, 16 bits for 8 numbers.

Source: related-systems.md 14 (QuIP#, arXiv 2402.04396). A point is a vector of odd halves (1/2,
3/2, 5/2) with signs whose sum is even, moved by 1/4 or by -1/4 in all eight coordinates. Of the
magnitudes there are 256 patterns: the 227 of squared norm at most 10, and 29 of the 56 that have
five coordinates of 3/2 and three of 1/2 (squared norm 12). Which 29 is free; here they are the
first in lexicographic order. A code is ``256 pattern + 128 shift + signs``: bit i of ``signs`` says
that coordinate i is negative, the sign of the last one follows from the even sum, and ``shift`` is
0 for 1/4 and 1 for -1/4.
"""

from functools import lru_cache
from itertools import product
from typing import Final, NamedTuple

import torch
from torch import Tensor

SIZE: Final = 8
"""Numbers of a point."""
POINTS: Final = 1 << 16
SHIFT: Final = 0.25
LARGEST: Final = 40
"""Largest squared norm of the complete shells, in quarters."""
PADDING: Final = 29
ROWS: Final = 1 << 16
"""Vectors that are rounded at a time, which bounds the memory of a search."""


class Tables(NamedTuple):
    """What the codebook is made of.

    Attributes:
        patterns: f32[256, 8], magnitudes; the last 29 are those of squared norm 12.
        points: f32[65536, 8], by code.
        places: i64[3^8], the pattern whose magnitude in coordinate i is 1/2 + the i-th digit of
            the index in base 3, lowest first; -1 where there is none.
        shapes: f32[7, 8], the patterns of the complete shells up to order, magnitudes falling.
    """

    patterns: Tensor
    points: Tensor
    places: Tensor
    shapes: Tensor


@lru_cache(maxsize=4)
def tables(device: torch.device) -> Tables:
    """Build the tables on a device."""
    odd = sorted(product((1, 3, 5), repeat=SIZE), key=lambda p: (sum(a * a for a in p), p))
    inner = [p for p in odd if sum(a * a for a in p) <= LARGEST]
    outer = [p for p in odd if sorted(p) == [1] * 3 + [3] * 5][:PADDING]
    patterns = torch.tensor(inner + outer, dtype=torch.float32) / 2
    codes = torch.arange(POINTS)
    magnitudes = patterns[codes >> 8]
    negative = (codes[:, None] >> torch.arange(SIZE - 1) & 1).bool()
    odd_sum = (magnitudes.sum(1).long() + negative.sum(1)) % 2 == 1
    negative = torch.cat([negative, odd_sum[:, None]], dim=1)
    shift = torch.where((codes >> 7 & 1).bool(), -SHIFT, SHIFT)
    points = torch.where(negative, -magnitudes, magnitudes) + shift[:, None]
    places = torch.full((3**SIZE,), -1)
    places[_digits(patterns)] = torch.arange(len(patterns))
    shapes = sorted({tuple(sorted(p, reverse=True)) for p in inner}, key=lambda p: (p[0], sum(p)))
    made = (patterns, points, places, torch.tensor(shapes, dtype=torch.float32) / 2)
    return Tables(*(table.to(device) for table in made))


def lattice_points(codes: Tensor) -> Tensor:
    """Write codes out.

    Args:
        codes: i64[...], 0 to 65535.

    Returns:
        f32[..., 8], odd multiples of 1/4.
    """
    return tables(codes.device).points[codes]


def nearest_codes(vectors: Tensor) -> Tensor:
    """Find the nearest point of each vector; exact but for rounding, the same at every call.

    Args:
        vectors: f32[n, 8].

    Returns:
        i64[n], codes.
    """
    parts = [_nearest(part) for part in torch.split(vectors, ROWS)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=vectors.device)


def _nearest(vectors: Tensor) -> Tensor:
    """Search with each shift; all permutations of a complete shell at once, by sorting.

    For fixed magnitudes the best signs are those of the vector. Where their sum comes out odd, the
    cheapest repair turns the sign of the smallest entry, which holds 1/2 in every shape: so the
    best permutation gives the largest magnitudes to the largest entries, whatever the parity.
    """
    table = tables(vectors.device)
    moved = torch.cat([vectors - SHIFT, vectors + SHIFT])
    magnitudes, negative = moved.abs(), moved < 0
    odd = negative.sum(1) % 2
    ordered, place = magnitudes.sort(dim=1, descending=True, stable=True)
    sums = ordered.cumsum(1)
    half = sums[:, -1:] / 2
    first, both = ordered[:, :1], ordered[:, :1] + sums[:, 1:2]
    # In the order of ``shapes``: no 3/2, one, ... four; then one 5/2, and with one 3/2 beside it.
    inner = torch.cat([half, half + sums[:, :4], half + 2 * first, half + both], dim=1)
    norms = table.shapes.square().sum(1)
    shape_odd = table.shapes.sum(1).long() % 2
    wrong = shape_odd ^ odd[:, None]
    costs = norms - 2 * (inner - wrong * ordered[:, -1:])
    cost, shape = costs.min(dim=1)
    pattern = torch.zeros_like(moved).scatter_(1, place, table.shapes[shape])
    flip = torch.where(wrong.gather(1, shape[:, None])[:, 0] == 1, place[:, -1], -1)
    chosen = table.places[_digits(pattern)]
    # The best that the outer patterns could give, were all 56 of them there.
    hopeful = (12 - 2 * (half[:, 0] + sums[:, 4]) < cost).nonzero()[:, 0]
    if len(hopeful):
        found = _outer(magnitudes[hopeful], odd[hopeful], table.patterns[-PADDING:])
        better = found[0] < cost[hopeful]
        rows = hopeful[better]
        cost[rows] = found[0][better]
        chosen[rows] = found[1][better] + (len(table.patterns) - PADDING)
        flip[rows] = found[2][better]
    negative = negative ^ (torch.arange(SIZE, device=moved.device) == flip[:, None])
    bits = 1 << torch.arange(SIZE - 1, device=moved.device)
    codes = chosen * 256 + (negative[:, :-1] * bits).sum(1)
    # Costs leave out the squared norm of the moved vector, which differs between the shifts.
    cost = cost + magnitudes.square().sum(1)
    count = len(vectors)
    return torch.where(cost[count:] < cost[:count], codes[count:] + 128, codes[:count])


def _outer(magnitudes: Tensor, odd: Tensor, patterns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cost, pattern and repaired coordinate (or -1) of the best among these patterns."""
    products = magnitudes[:, None] * patterns
    repair, coordinate = products.min(dim=2)
    wrong = (patterns.sum(1).long() % 2) ^ odd[:, None]
    costs = patterns.square().sum(1) - 2 * (products.sum(2) - 2 * wrong * repair)
    cost, best = costs.min(dim=1)
    at = best[:, None]
    flip = torch.where(wrong.gather(1, at) == 1, coordinate.gather(1, at), -1)
    return cost, best, flip[:, 0]


def _digits(patterns: Tensor) -> Tensor:
    """Number each pattern, f32[n, 8], by its digits in base 3: i64[n]."""
    powers = 3 ** torch.arange(SIZE, device=patterns.device)
    return ((patterns - 0.5).long() * powers).sum(1)
