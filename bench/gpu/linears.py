"""Time packed linears against bf16 ones, and hold every timed kernel against the formula."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from bench.common.shapes import Shape
from qdc.backends.triton.checking import Formula
from qdc.backends.triton.modules import PackedLinear
from qdc.backends.triton.parts import Part

from .card import Card
from .clock import Clock, OutOfTime
from .peers import Linear, Make, dtype_of, first_line, importable
from .sizes import Sizes
from .weights import codec_of, random_stored

BASELINE, PACKED = "bf16", "qdc"
COLD = 3
"""Weights that are read in turn are together so many times the L2."""
MOST_COPIES = 1024
CHECKED_ROWS = 256
"""Of the input that are held against the formula at a time: fp64 takes memory."""


class Row(BaseModel):
    """One shape and number of rows of the input."""

    model: str
    layer: str
    rows: int
    columns: int
    tokens: int
    codec: str = "multi-binary"
    seconds: dict[str, float] = {}
    """Of one call, by method."""
    how: dict[str, str] = {}
    failed: dict[str, str] = {}
    """Methods that could not be measured, and why."""
    bytes_read: dict[str, int] = {}
    """Weights, input and output of a call."""
    floor_seconds: float
    """Of the packed linear, from the rates of this card: bytes, or products."""
    deviation: float | None = None
    """Largest deviation of the packed linear from the formula, as a share of what rounding
    explains: above 1 it is wrong."""

    @property
    def speedup(self) -> float | None:
        """Packed over bf16."""
        if not {BASELINE, PACKED} <= set(self.seconds):
            return None
        return self.seconds[BASELINE] / self.seconds[PACKED]

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second of the packed linear."""
        return self.bytes_read[PACKED] / self.seconds[PACKED] if PACKED in self.seconds else None


def measure(
    clock: Clock, card: Card, sizes: Sizes, rows: list[Row], peers: Mapping[str, Make] | None = None
) -> None:
    """Measure shape by shape. Adds to ``rows``; raises ``OutOfTime``.

    ``peers`` are those that are importable, if not given.
    """
    others = dict(importable()) if peers is None else dict(peers)
    for number, shape in enumerate(sizes.shapes):
        rows.extend(_unmeasured(shape, card, sizes))
        mine = rows[-len(sizes.tokens) :]
        clock.check()
        _packed(clock, card, shape, sizes, mine, seed=number)
        _dense(clock, card, shape, sizes, mine, others)


def _unmeasured(shape: Shape, card: Card, sizes: Sizes) -> Iterator[Row]:
    total = sum(shape.rows)
    stored = sum(codec_of(shape.codec, rows, shape.columns).nbytes for rows in shape.rows)
    for tokens in sizes.tokens:
        moved = 2 * tokens * (shape.columns + total)
        products = 2 * tokens * total * shape.columns
        yield Row(
            model=shape.model, layer=shape.layer, rows=total, columns=shape.columns,
            tokens=tokens, codec=shape.codec,
            bytes_read={PACKED: stored + moved, BASELINE: 2 * total * shape.columns + moved},
            floor_seconds=max(
                (stored + moved) / card.copy_bytes_per_second, products / card.bf16_flops
            ),
        )  # fmt: skip


def _packed(
    clock: Clock, card: Card, shape: Shape, sizes: Sizes, mine: list[Row], seed: int
) -> None:
    dtype = dtype_of(sizes.floating)
    generator = torch.Generator(clock.device).manual_seed(seed)
    codecs = [codec_of(shape.codec, rows, shape.columns) for rows in shape.rows]
    parts = [Part(codec, random_stored(codec, generator), None) for codec in codecs]
    first = PackedLinear(parts, dtype, clock.device)
    formulas = [Formula(part.codec, part.stored) for part in parts]
    copies = copies_of(card, sum(buffer.nbytes for buffer in first.buffers()))
    modules = [first, *(copy.deepcopy(first) for _ in range(copies - 1))]
    for row in mine:
        x = _input(row, dtype, generator)
        row.deviation = _deviation(first(x), formulas, x)
        _timed(clock, row, PACKED, modules, x)


def _dense(
    clock: Clock, card: Card, shape: Shape, sizes: Sizes, mine: list[Row],
    others: Mapping[str, Make],
) -> None:  # fmt: skip
    dtype = dtype_of(sizes.floating)
    generator = torch.Generator(clock.device).manual_seed(0)
    size = (sum(shape.rows), shape.columns)
    copies = copies_of(card, 2 * size[0] * size[1])
    weights = [
        torch.randn(size, device=clock.device, dtype=dtype, generator=generator)
        for _ in range(copies)
    ]

    def plain(weight: Tensor) -> Linear:
        return lambda x: nn.functional.linear(x, weight)

    for name, make in {BASELINE: plain, **others}.items():
        try:
            linears = [make(weight) for weight in weights]
        except Exception as error:
            for row in mine:
                row.failed[name] = first_line(error)
            continue
        for row in mine:
            x = _input(row, dtype, generator)
            try:
                _timed(clock, row, name, linears, x)
            except OutOfTime:
                raise
            except Exception as error:
                row.failed[name] = first_line(error)
        del linears


def _timed(clock: Clock, row: Row, name: str, linears: Sequence[Linear], x: Tensor) -> None:
    timing = clock.time([partial(linear, x) for linear in linears])
    row.seconds[name], row.how[name] = timing


def _input(row: Row, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    size = (row.tokens, row.columns)
    return torch.randn(size, generator=generator, device=generator.device).to(dtype)


def _deviation(found: Tensor, formulas: list[Formula], x: Tensor) -> float:
    """The largest, in units of what rounding explains; infinite if something is not finite."""
    worst = 0.0
    pairs = zip(torch.split(x, CHECKED_ROWS), torch.split(found, CHECKED_ROWS), strict=True)
    for rows, got in pairs:
        results = [formula.linear(rows, None, found.dtype) for formula in formulas]
        exact, allowed = (torch.cat(each, dim=-1) for each in zip(*results, strict=True))
        share = (got.double() - exact).abs() / allowed
        worst = max(worst, float(torch.where(share.isfinite(), share, torch.inf).max()))
    return worst


def copies_of(card: Card, nbytes: int) -> int:
    """So many that the first is out of the L2 when its turn comes again."""
    return max(2, min(MOST_COPIES, -(-COLD * card.cache_bytes // nbytes)))
