"""Where the weights of a trellis layer are, and what is kept of one: rings as they are stored.

A kernel reads 64 bits of a ring for every eight steps: they take as many bits as the rate says,
and every eight of a ring lie alike. Their fields are cut out by shifts and masks that are computed
here, once, and name an entry of a table: the level of one step, or the levels of two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from qdc.format.trelliscode import TrellisCode
from qdc.numerics.hadamard import random_signs
from qdc.numerics.trellis import EIGHTHS, UNITS, Code, bits_of_steps, levels

STEPS = 8
"""Steps whose bits are read at once."""
ROWS = 2 * STEPS
"""Rows of a ring are padded to a multiple of this, in tiles and results alone."""
TALLEST = 512
"""Rows of a tile that kernels have room for."""
OLDEST = 16
"""Bits before a step that its window may reach back to."""
BEYOND = 16
"""Bytes that may be read behind a ring."""
PAIRS_BYTES = 96 << 10
"""Of a table of pairs up to which looking two levels up at once is faster."""


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
    def late(self) -> int:
        """The first ring that is read from a copy, for what is read behind it may be no memory."""
        tiles = self.rings * self.columns
        return max(0, tiles - 8 * BEYOND // self.ring - 2)

    @property
    def seconds(self) -> tuple[int, ...]:
        """Bits that the second step of each pair takes, of eight steps."""
        return bits_of_steps(STEPS, self.rate)[1::2]

    @property
    def together(self) -> int:
        """Steps that are looked up at once: two if their table is small enough."""
        entries = sum(1 << self.window + bits for bits in set(self.seconds))
        return 2 if 4 * entries <= PAIRS_BYTES else 1

    @property
    def table_bytes(self) -> int:
        """Of the table that a kernel reads."""
        if self.together == 1:
            return 2 << self.window
        return 4 * sum(1 << self.window + bits for bits in set(self.seconds))


def ring_layout(codec: TrellisCode) -> RingLayout | None:
    """The layout of a codec whose rings kernels read; None for tiles that are wide, tall or tiny."""
    if codec.width > 1 or codec.height > TALLEST or codec.ring < OLDEST:
        return None
    return RingLayout(
        codec.rows, codec.columns, codec.rate, codec.window, codec.code, codec.height
    )


def kept_rings(codec: TrellisCode, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a layer keeps, by its name in kernels.

    Returns:
        The stored tensors as they are; ``late`` u8, the bytes of the last rings and zeros behind
        them; ``before`` f16[columns] and ``after`` f16[rows], signs of both rotations; ``factor``
        f32[1], the scale of whole levels; and of every eight steps of a ring, i64 each: ``starts``
        [ring_rows / 8], their byte, ``shifts`` [ring_rows / together], the first bits of their
        fields in it, and for as many as a kernel looks up at once ``masks`` [8], their bits, and
        ``bases`` [8], the entries of the table that are not theirs.
    """
    layout = ring_layout(codec)
    assert layout is not None
    inputs, outputs = stored["seeds"].tolist()
    begin = layout.late * layout.ring // 8
    late = torch.zeros(stored["codes"].numel() - begin + 2 * BEYOND, dtype=torch.uint8)
    late[: -2 * BEYOND] = stored["codes"][begin:]
    return {
        **stored,
        "late": late,
        "before": random_signs(codec.columns, inputs).half(),
        "after": random_signs(codec.rows, outputs).half(),
        "factor": torch.tensor([codec.factor(stored["scale"]) / UNITS[codec.code]]),
        **_fields(layout),
    }


def _fields(layout: RingLayout) -> dict[str, Tensor]:
    rate, together = layout.rate, layout.together
    words = layout.ring_rows // STEPS
    ends = [step * rate // EIGHTHS for step in range(STEPS + 1)]
    firsts = [OLDEST + ends[step + 1] - layout.window for step in range(0, STEPS, together)]
    bits = (0,) * STEPS if together == 1 else layout.seconds
    sizes = [layout.window + more for more in bits]
    begins = dict(zip(sorted(set(sizes)), _starts(sorted(set(sizes))), strict=True))
    # The first two words are put together from both ends of the ring, and begin at their bits.
    bytes_ = [word * rate // 8 - OLDEST // 8 if word > 1 else 0 for word in range(words)]
    phases = [word * rate % 8 if word > 1 else 0 for word in range(words)]
    shifts = [first + phase for phase in phases for first in firsts]
    found = {
        "starts": bytes_,
        "shifts": shifts,
        "masks": [(1 << size) - 1 for size in sizes] * (8 // len(sizes)),
        "bases": [begins[size] for size in sizes] * (8 // len(sizes)),
    }
    return {name: torch.tensor(values) for name, values in found.items()}


def _starts(sizes: list[int]) -> list[int]:
    """Where the tables of fields of so many bits begin in one."""
    return [sum(1 << size for size in sizes[:place]) for place in range(len(sizes))]


@cache
def level_table(layout: RingLayout, kind: torch.dtype) -> Tensor:
    """Levels by the fields of ``kept_rings``: ``[entries, together]``, whole numbers as ``kind``.

    A field has the oldest bit lowest, a state the newest.

    Args:
        layout: of a layer; the rows and columns are not read.
        kind: int16, exact, or bfloat16, rounded.
    """
    window = layout.window
    state = torch.arange(1 << window)
    turned = torch.zeros_like(state)
    for bit in range(window):
        turned |= (state >> bit & 1) << (window - 1 - bit)
    whole = levels(layout.code, window, torch.device("cpu")) * UNITS[layout.code]
    single = whole[turned].to(kind)
    if layout.together == 1:
        return single[:, None]
    parts = []
    for bits in sorted(set(layout.seconds)):
        field = torch.arange(1 << window + bits)
        parts.append(torch.stack([single[field & (1 << window) - 1], single[field >> bits]], dim=1))
    return torch.cat(parts)
