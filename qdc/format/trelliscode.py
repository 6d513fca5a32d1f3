"""The codec of trellis codes: rings of bits, in coordinates that random rotations have mixed.

``docs/format.md`` specifies it.
"""

from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from qdc.format.rotatedcode import RotatedCode
from qdc.ir.types import ValueType
from qdc.numerics.fields import pack_codes, unpack_codes
from qdc.numerics.tiling import LONGEST, Tiling
from qdc.numerics.trellis import (
    EIGHTHS,
    Code,
    Trellis,
    Window,
    bits_of_steps,
    levels,
    ring_bits,
    ring_states,
)

DECODED = 1 << 22
"""Numbers that are decoded at a time."""


class TrellisCode(RotatedCode):
    """W = scale * S_r H_r P H_c S_c, with P made of tiles, each one ring of bits."""

    name: ClassVar[str] = "trellis"

    rate: int = Field(ge=EIGHTHS, le=4 * EIGHTHS)
    """Bits of eight weights."""
    window: Window
    """Bits that decode to one weight."""
    code: Code
    height: int = Field(gt=0, le=LONGEST)
    """Rows of a tile."""
    width: int = Field(gt=0, le=LONGEST)
    """Columns of a tile."""

    @classmethod
    def of(
        cls,
        rows: int,
        columns: int,
        rate: int,
        *,
        height: int,
        width: int,
        window: Window = 10,
        code: Code = "quadratic",
    ) -> Self:
        """The codec of a matrix, with tiles of about this height and width that fit it."""
        tiling = Tiling.fitted(rows, height, width)
        return cls(
            rows=rows,
            columns=columns,
            rate=rate,
            window=window,
            code=code,
            height=tiling.height,
            width=tiling.width,
        )

    @model_validator(mode="after")
    def _tile_holds_a_window(self) -> Self:
        if self.tiling.size > LONGEST:
            raise ValueError(f"a tile holds at most {LONGEST} weights, not {self.tiling.size}")
        if self.ring < self.window:
            raise ValueError(f"{self.ring} bits of a tile hold no window of {self.window}")
        return self

    @property
    def tiling(self) -> Tiling:
        """How the matrix is cut."""
        return Tiling(self.height, self.width)

    @property
    def ring(self) -> int:
        """Bits of a tile."""
        return self.tiling.size * self.rate // EIGHTHS

    @property
    def tiles(self) -> int:
        """Tiles of the layer."""
        down, along = self.tiling.tiles(self.rows, self.columns)
        return down * along

    @property
    def payload_bits(self) -> int:
        """The rate times the weights; rounded down where that is no whole number."""
        return self.rows * self.columns * self.rate // EIGHTHS

    def text(self) -> str:
        """``2 bits   window 10   rotated by 64 and 512``."""
        return f"{self.rate / EIGHTHS:.4g} bits   window {self.window}   {self.rotation_text}"

    def specification(self) -> dict[str, ValueType]:
        """The bits of all rings, one scale, the seeds of both rotations."""
        codes = ValueType(dtype="u8", shape=(-(-self.tiles * self.ring // 8),))
        return {"codes": codes, **self.rotation()}

    def trellis(self, device: torch.device) -> Trellis:
        """What a ring decodes to."""
        taken = bits_of_steps(self.tiling.size, self.rate)
        return Trellis(levels(self.code, self.window, device), self.window, taken)

    def points(self, codes: Tensor) -> Tensor:
        """Write all windows out, some rings at a time."""
        trellis, size = self.trellis(codes.device), self.tiling.size
        bits = unpack_codes(codes, 1, self.tiles * self.ring).view(self.tiles, self.ring)
        found = [
            trellis.levels[ring_states(part, self.window, trellis.taken)]
            for part in torch.split(bits, max(1, DECODED // size))
        ]
        return self.tiling.matrix(torch.cat(found).T, self.rows, self.columns)

    @staticmethod
    def stored_codes(states: Tensor, trellis: Trellis) -> Tensor:
        """The bits of all rings, from their states, i64[steps, tiles]."""
        return pack_codes(ring_bits(states, trellis.taken).flatten(), 1)
