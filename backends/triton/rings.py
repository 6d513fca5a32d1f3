"""The layout of rings of bits that kernels read, derived from the codes by pure functions.

The portable format counts rings down the rows first; a kernel takes the columns of one tile of rows
one after the other, so that is how they lie here, each in whole words of 16 bits. A ring is turned
until the window of its first step begins at bit 0: then step ``t`` has its window from bit
``floor((t + 1) rate / 8) - floor(rate / 8)`` on, and eight steps of a column begin at a multiple of
``rate``. Reading on from the last word comes to the first one, as on a ring it should. Where a ring
is no whole number of words, which only tiles of odd heights are, its first bits are repeated behind
its last ones instead.

In a word the oldest bit of a window is the lowest, where the format's number of a state has it as
the highest: tables have their levels in the order of the reversed number, and no bit is moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from qdc.format.trelliscode import TrellisCode
from qdc.numerics.fields import pack_codes, unpack_codes
from qdc.numerics.hadamard import random_signs
from qdc.numerics.trellis import EIGHTHS, levels

from .layout import row_tiles
from .parts import Part

WORD = 16
"""Bits of a word."""


@dataclass(frozen=True)
class RingLayout:
    """Rings of one or several joined linears.

    ``T`` tiles of rows, ``C`` of columns, ``K`` words of a ring, ``S`` segments; ``D`` is 1 where
    all segments rotate their inputs alike, else ``S``.
    """

    codes: Tensor
    """``i16[T, C, K]``."""
    table: Tensor
    """``f32[2^window]``, levels in the order of states with their bits reversed."""
    scale: Tensor
    """``f32[S]``."""
    in_signs: Tensor
    """``i8[D, columns]``, of the rotations of inputs."""
    out_signs: Tensor
    """``i8[sum of rows]``, of the rotations of outputs."""
    tiles: Tensor
    """``i32[T, 3]``: segment, first output, outputs."""
    height: int
    span: int
    """Columns of a tile."""
    rate: int
    window: int
    columns: int
    rows: tuple[int, ...]
    """Outputs of each segment."""


def ring_words(codec: TrellisCode, codes: Tensor) -> Tensor:
    """Lay the rings of one layer out: ``u8[ceil(bits / 8)]`` as stored to ``i16[T, C, K]``."""
    down, along = codec.tiling.tiles(codec.rows, codec.columns)
    back = codec.window - codec.rate // EIGHTHS
    if codec.ring % WORD == 0:
        words = codes.clone().view(torch.int16).view(along, down, -1).transpose(0, 1)
        # Shifts to the right repeat the highest bit, which is a sign to them.
        before = words.roll(1, -1) >> (WORD - back) & (1 << back) - 1
        return (words << back | before).contiguous()
    bits = unpack_codes(codes, 1, codec.tiles * codec.ring).view(along, down, codec.ring)
    turned = bits.transpose(0, 1).roll(back, -1)
    longer = torch.cat([turned, turned[..., :back]], dim=-1)
    return pack_codes(pad(longer, (0, -longer.shape[-1] % WORD)), 1).view(torch.int16)


@cache
def window_group(span: int, rate: int, window: int) -> int:
    """How many neighbouring steps have their windows in two words, wherever in a ring they are.

    Args:
        span: columns of a tile; where there are several, a column can begin at any step.
        rate: eighths of a bit of a step.
        window: bits.

    Returns:
        8, 4, 2 or 1.
    """
    begin = [(step + 1) * rate // EIGHTHS - rate // EIGHTHS for step in range(WORD * EIGHTHS + 8)]
    for group in (8, 4, 2):
        firsts = range(0, WORD * EIGHTHS, group if span == 1 else 1)
        ends = (begin[t + group - 1] - begin[t] // WORD * WORD + window for t in firsts)
        if max(ends) <= 2 * WORD:
            return group
    return 1


def reversed_states(window: int) -> Tensor:
    """``i64[2^window]``: each state with its bits in the other order."""
    state = torch.arange(1 << window)
    return sum(
        ((state >> bit & 1) << (window - 1 - bit) for bit in range(window)),
        torch.zeros_like(state),
    )


def ring_layout(parts: Sequence[Part]) -> RingLayout:
    """Lay joined linears on trellis codes out; they have equal columns, tiles, rates and codes."""
    codecs = [part.codec for part in parts if isinstance(part.codec, TrellisCode)]
    codec = codecs[0]
    device = parts[0].stored["codes"].device
    inputs, outputs = zip(*(part.stored["seeds"].tolist() for part in parts), strict=True)
    drawn = {seed: random_signs(codec.columns, seed) for seed in inputs}
    rows = tuple(own.rows for own in codecs)
    signs = [random_signs(count, seed) for count, seed in zip(rows, outputs, strict=True)]
    alike = len(drawn) == 1
    return RingLayout(
        codes=torch.cat(
            [ring_words(own, part.stored["codes"]) for own, part in zip(codecs, parts, strict=True)]
        ),
        table=levels(codec.code, codec.window, torch.device("cpu"))[reversed_states(codec.window)],
        scale=torch.cat([part.stored["scale"].float() for part in parts]),
        in_signs=torch.stack([drawn[seed] for seed in inputs[: 1 if alike else None]]).to(
            device, torch.int8
        ),
        out_signs=torch.cat(signs).to(device, torch.int8),
        tiles=row_tiles(rows, codec.height),
        height=codec.height,
        span=codec.width,
        rate=codec.rate,
        window=codec.window,
        columns=codec.columns,
        rows=rows,
    )
