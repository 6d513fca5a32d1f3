"""Which kernel runs which shape: named configurations, and the table that picks one by size."""

from dataclasses import dataclass
from typing import Literal

from qdc.ir.types import Frozen

Family = Literal["planes", "tile", "rings", "expand"]

EXPAND_FROM = 256
"""Rows of activations from which a weight is expanded once and multiplied by the library."""
MULTIPROCESSORS = 132
"""Of an H100; split-K is meant to give each one some programs."""
PROGRAMS_EACH = 3
TOKEN_TILES = 16
"""Tiles of activations for which a layer of 64-row tiles has places to count arrivals in."""
REGISTERS = 255
"""Of a thread, at the most: all there are, or ptxas spills to make room for more programs."""


class Variant(Frozen):
    """One compiled form of the kernel of linears."""

    family: Family
    rows: int = 0
    """Outputs of a program; 0 for ``expand``."""
    tokens: int = 0
    """Rows of activations of a program."""
    warps: int = 4
    stages: int = 5
    """Rounds of the loop in flight. Of multi-binary kernels only from 5 on: what to load stands in
    a table that is loaded itself, and up to 4 the compiler gives them one buffer to wait for."""

    @property
    def name(self) -> str:
        """``planes-64x16-w2-s5``."""
        if self.family == "expand":
            return "expand"
        return f"{self.family}-{self.rows}x{self.tokens}-w{self.warps}-s{self.stages}"


EXPAND = Variant(family="expand")
DEFAULTS: tuple[tuple[int, Variant], ...] = (
    (16, Variant(family="planes", rows=64, tokens=16, warps=2)),
    (32, Variant(family="tile", rows=64, tokens=32, warps=2)),
    (64, Variant(family="tile", rows=64, tokens=64, warps=4)),
    (EXPAND_FROM - 1, Variant(family="tile", rows=64, tokens=128, warps=8)),
)
"""The largest number of rows of activations, and the variant up to there."""
UNIFORM: tuple[tuple[int, Variant], ...] = (
    (16, Variant(family="planes", rows=64, tokens=16, warps=4, stages=3)),
    (64, Variant(family="planes", rows=64, tokens=64, warps=4, stages=3)),
    (EXPAND_FROM - 1, Variant(family="planes", rows=64, tokens=128, warps=8, stages=3)),
)
TRELLIS: tuple[tuple[int, Variant], ...] = (
    (16, Variant(family="rings", rows=64, tokens=16, warps=4, stages=3)),
    (64, Variant(family="rings", rows=64, tokens=64, warps=4, stages=3)),
    (EXPAND_FROM - 1, Variant(family="rings", rows=64, tokens=128, warps=8, stages=3)),
)
RING_COLUMNS = 64
"""Columns of rings that a program decodes at a time."""
CANDIDATES: tuple[Variant, ...] = (
    *(variant for _, variant in DEFAULTS),
    *(variant.model_copy(update={"stages": 3}) for _, variant in DEFAULTS),
    Variant(family="planes", rows=128, tokens=16, warps=4),
    Variant(family="planes", rows=64, tokens=32, warps=4),
    Variant(family="tile", rows=128, tokens=32, warps=4),
    Variant(family="tile", rows=128, tokens=64, warps=8),
    EXPAND,
)
"""What tuning tries."""


@dataclass(frozen=True)
class Choice:
    """A variant, and how many programs share a tile of outputs."""

    variant: Variant
    split: int = 1


def default_choice(tokens: int, padded_rows: int, units: int) -> Choice:
    """What runs without tuning.

    Args:
        tokens: rows of activations.
        padded_rows: outputs, padded to whole tiles.
        units: pairs and singles of the layer, among which programs are split.
    """
    for largest, variant in DEFAULTS:
        if tokens <= largest:
            return Choice(variant, split_for(variant, tokens, padded_rows, units))
    return Choice(EXPAND)


def may_split(variant: Variant, tokens: int) -> bool:
    """Whether a layer has a place for each tile of outputs that programs would share."""
    return -(-tokens // variant.tokens) * 64 <= TOKEN_TILES * variant.rows


def split_for(variant: Variant, tokens: int, padded_rows: int, units: int) -> int:
    """How many programs share a tile: a power of two that fills the device, with work for each."""
    if not may_split(variant, tokens):
        return 1
    programs = padded_rows // variant.rows * -(-tokens // variant.tokens)
    split = 1
    while programs * split * 2 <= MULTIPROCESSORS * PROGRAMS_EACH and units >= split * 8:
        split *= 2
    return split


def uniform_choice(tokens: int) -> Variant:
    """What runs uniform linears."""
    return next((variant for largest, variant in UNIFORM if tokens <= largest), EXPAND)


def trellis_choice(tokens: int, tiles: int, height: int, columns: int) -> Choice:
    """What runs linears on trellis codes.

    Args:
        tokens: rows of activations.
        tiles: of the codec, along the outputs.
        height: rows of each.
        columns: inputs, among which programs are split.
    """
    for largest, variant in TRELLIS:
        if tokens <= largest:
            padded = tiles * -(-height // variant.rows) * variant.rows
            return Choice(variant, split_for(variant, tokens, padded, -(-columns // RING_COLUMNS)))
    return Choice(EXPAND)
