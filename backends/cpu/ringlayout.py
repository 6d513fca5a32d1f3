"""Where the weights of a trellis layer are, and what is kept of one: rings as they are stored.

A kernel reads 64 bits of a ring for every eight steps, which take as many bits as the rate says:
so every eight of a ring lie alike. Fields of these bits name entries of a table: the level of one
step, or the levels of two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.format.trelliscode import TrellisCode
from qdc.numerics.hadamard import random_signs
from qdc.numerics.trellis import EIGHTHS, UNITS, Code, bits_of_steps, levels

STEPS = 8
"""Steps whose bits are read at once."""
ROWS = 8 * STEPS
"""Steps whose bits are whole bytes, whatever the rate; rows of a ring are padded to a multiple, in
tiles and results alone."""
TALLEST = 512
"""Rows of a tile that kernels have room for."""
OLDEST = 16
"""Bits before a step that its window may reach back to."""
BEYOND = 40
"""Bytes that may be read behind a ring: up to 63 padded steps of 4 bits, and most of a word."""
PAIRS_BYTES = 96 << 10
"""Of tables of pairs up to which they are faster: twice a first cache is, four times is not."""


class Fields(NamedTuple):
    """What kernels cut out of the bits of a ring, and look up."""

    rate: int
    """Bits of eight steps."""
    window: int
    aligned: bool
    """Whether every ring begins at a byte."""

    @property
    def together(self) -> int:
        """Steps that are looked up at once: two if their table is small enough."""
        entries = sum(1 << bits for bits in self._pairs())
        return 2 if 4 * entries <= PAIRS_BYTES else 1

    @property
    def sizes(self) -> list[int]:
        """Bits of fields; each size has a table of its own, one behind the other."""
        return [self.window] if self.together == 1 else self._pairs()

    @property
    def table_bytes(self) -> int:
        """Of these tables."""
        return 2 * self.together * sum(1 << bits for bits in self.sizes)

    @property
    def of_word(self) -> list[tuple[int, int, int]]:
        """Fields of eight steps: first bit, where 16 bits come before; bits; where its table is."""
        sizes, together = self.sizes, self.together
        begins = {size: sum(1 << other for other in sizes if other < size) for size in sizes}
        taken = bits_of_steps(STEPS, self.rate)
        found = []
        for step in range(0, STEPS, together):
            bits = self.window + sum(taken[step + 1 : step + together])
            first = OLDEST + sum(taken[: step + 1]) - self.window
            found.append((first, bits, begins[bits]))
        return found

    def _pairs(self) -> list[int]:
        seconds = bits_of_steps(STEPS, self.rate)[1::2]
        return sorted({self.window + bits for bits in seconds})


@dataclass(frozen=True)
class RingLayout:
    """Where rings are, and how their steps are read: all that kernels are told."""

    rows: int
    columns: int
    rate: int
    """Bits of eight steps."""
    window: int
    code: Code
    height: int
    """Steps of a ring."""

    @property
    def padded(self) -> int:
        """Rows of the bias."""
        return self.rows

    @property
    def rings(self) -> int:
        """Rings of a column."""
        return -(-self.rows // self.height)

    @property
    def ring(self) -> int:
        """Bits of one."""
        return self.height * self.rate // EIGHTHS

    @property
    def ring_rows(self) -> int:
        """Rows of one, padding included."""
        return -(-self.height // ROWS) * ROWS

    @property
    def nbytes(self) -> int:
        """Of all rings."""
        return -(-self.rings * self.columns * self.ring // 8)

    @property
    def late(self) -> int:
        """The first ring that is read from a copy, for what is read behind it may be no memory."""
        return max(0, self.rings * self.columns - 8 * BEYOND // self.ring - 2)

    @property
    def late_byte(self) -> int:
        """Where the copy begins."""
        return self.late * self.ring // 8

    @property
    def late_bytes(self) -> int:
        """Of the copy, and of zeros behind it."""
        return self.nbytes - self.late_byte + BEYOND

    @property
    def fields(self) -> Fields:
        """What is looked up."""
        return Fields(self.rate, self.window, aligned=self.ring % 8 == 0)


def ring_layout(codec: TrellisCode) -> RingLayout | None:
    """The layout of a codec that kernels read; None for tiles that are wide, tall or tiny."""
    if codec.width > 1 or codec.height > TALLEST or codec.ring < OLDEST:
        return None
    return RingLayout(codec.rows, codec.columns, codec.rate, codec.window, codec.code, codec.height)


def kept_rings(codec: TrellisCode, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a layer keeps, by its name in kernels.

    Returns:
        The stored tensors as they are; ``late`` u8, the bytes of the last rings and zeros behind
        them; ``before`` f16[columns] and ``after`` f16[rows], signs of both rotations; and
        ``factor`` f32[1], the scale of whole levels.
    """
    layout = ring_layout(codec)
    assert layout is not None
    inputs, outputs = stored["seeds"].tolist()
    late = torch.zeros(layout.late_bytes, dtype=torch.uint8)
    late[:-BEYOND] = stored["codes"][layout.late_byte :]
    return {
        **stored,
        "late": late,
        "before": random_signs(codec.columns, inputs).half(),
        "after": random_signs(codec.rows, outputs).half(),
        "factor": torch.tensor([codec.factor(stored["scale"]) / UNITS[codec.code]]),
    }


@cache
def level_table(code: Code, fields: Fields, kind: torch.dtype) -> Tensor:
    """Levels by fields, in whole numbers: ``[entries, together]``.

    Args:
        code: of the layer.
        fields: what is looked up. It has the oldest bit lowest, where a state has the newest.
        kind: int16, exact, or bfloat16, rounded.
    """
    window = fields.window
    state = torch.arange(1 << window)
    turned = torch.zeros_like(state)
    for bit in range(window):
        turned |= (state >> bit & 1) << (window - 1 - bit)
    whole = levels(code, window, torch.device("cpu")) * UNITS[code]
    single = whole[turned].to(kind)
    parts = []
    for bits in fields.sizes:
        field = torch.arange(1 << bits)
        steps = (field & (1 << window) - 1, field >> bits - window)[: fields.together]
        parts.append(torch.stack([single[step] for step in steps], dim=1))
    return torch.cat(parts)
