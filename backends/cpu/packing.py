"""What is kept of a layer: planes and codes as they are stored, scales by columns of rows.

Planes and codes stay where the file was mapped. Scales are turned round, for a kernel that takes 32
rows at a time wants theirs side by side; they stay in 16 bits. So a layer takes what it takes in
the artifact, 8-bit scales apart, which are decoded to 16 bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from qdc.format.codec import Codec
from qdc.format.multibinary import MultiBinary
from qdc.format.trelliscode import TrellisCode
from qdc.format.uniformgrid import UniformGrid

from .ringlayout import RingLayout, kept_rings, ring_layout

ROWS = 128
"""Rows are padded to a multiple of this, in scales and results alone."""
UNIT = 128
"""Bits of a row that are looked up together: 16 bytes."""
WORD = 16
"""Columns that every kernel takes at once; bytes of padding end where a row ends."""


@dataclass(frozen=True)
class Layout:
    """Where the weights of a layer are: all that kernels are told."""

    rows: int
    columns: int
    bits: int
    """Of a code; 0 for signs."""
    place: str
    """``none``, ``float`` or ``packed``."""
    blocks: int
    """Blocks or groups of a row."""
    width: int
    """Columns of one, padding included."""
    orders: tuple[int, ...]
    """Planes of each block; 1 for codes."""

    @cached_property
    def padded(self) -> int:
        """Rows of scales and results."""
        return -(-self.rows // ROWS) * ROWS

    @cached_property
    def padded_columns(self) -> int:
        """Columns of the blocks."""
        return self.blocks * self.width

    @cached_property
    def row_bytes(self) -> int:
        """Of planes or codes."""
        return sum(self.orders) * self.width * max(self.bits, 1) // 8

    @cached_property
    def per_unit(self) -> int:
        """Columns of a unit."""
        return UNIT // max(self.bits, 1)


def layout_of(codec: Codec) -> Layout | RingLayout | None:
    """The layout of a codec that kernels read; None for any other."""
    if isinstance(codec, TrellisCode):
        return ring_layout(codec)
    if isinstance(codec, MultiBinary) and codec.block % WORD == 0:
        blocks, width = len(codec.orders), codec.block
        return Layout(codec.rows, codec.columns, 0, "none", blocks, width, codec.orders)
    if isinstance(codec, UniformGrid) and codec.group % WORD == 0:
        ones = (1,) * codec.groups
        return Layout(
            codec.rows, codec.columns, codec.bits, codec.zero, codec.groups, codec.group, ones
        )
    return None


def kept(codec: Codec, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a layer keeps, by its name in kernels.

    Returns:
        ``bits`` as stored; ``scales`` and ``places`` f16[groups, padded rows], 0 in the padding;
        ``columns`` f32[planes, block]; ``orders`` i64[blocks]; and of units, i64 each: their first
        byte in a row, their first column, their row of scales. Of a trellis: see ``kept_rings``.
    """
    if isinstance(codec, TrellisCode):
        return kept_rings(codec, stored)
    layout = layout_of(codec)
    assert isinstance(layout, Layout)
    found = {"orders": torch.tensor(layout.orders), **_units(layout)}
    if isinstance(codec, MultiBinary):
        row_scale, col_scale = codec.scales(stored)
        found |= {"bits": stored["planes"], "columns": col_scale[0].float().contiguous()}
        return {**found, "scales": _turned(row_scale, layout)}
    place = stored.get("minimum")
    if place is None:
        # Zero points are whole numbers up to 255, exact in 16 bits.
        place = codec.unpack({**stored, "codes": stored["codes"][:0]})["zero"].half()
    found |= {"bits": stored["codes"], "scales": _turned(stored["scale"], layout)}
    return {**found, "places": _turned(place, layout)}


def _turned(scales: Tensor, layout: Layout) -> Tensor:
    """Scales ``f16[rows, G]`` with the rows side by side: a copy, the file is let go."""
    made = torch.zeros(scales.shape[1], layout.padded, dtype=torch.float16)
    made[:, : layout.rows] = scales.T
    return made


def _units(layout: Layout) -> dict[str, Tensor]:
    """Bytes, columns and scales of the units; empty where blocks do not consist of units."""
    if layout.width % layout.per_unit:
        return {}
    inside = layout.width // layout.per_unit
    nbytes, columns, scales = [], [], []
    plane = 0
    for block, order in enumerate(layout.orders):
        for _ in range(order):
            for unit in range(inside):
                nbytes.append((plane * inside + unit) * UNIT // 8)
                columns.append(block * layout.width + unit * layout.per_unit)
                scales.append(plane)
            plane += 1
    names = ("unit_bytes", "unit_inputs", "unit_scales")
    return {n: torch.tensor(v) for n, v in zip(names, (nbytes, columns, scales), strict=True)}


def padded_inputs(values: Tensor, layout: Layout) -> Tensor:
    """Activations as fp32, with zeros where a ragged last block has padding."""
    wide = values.float().contiguous()
    missing = layout.padded_columns - layout.columns
    return pad(wide, (0, missing)) if missing else wide
