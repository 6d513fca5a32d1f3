"""Time packed linears against torch's bf16 ones, in turns."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.functional import linear

from bench.common.shapes import LLADA, Model
from bench.gpu.weights import codec_of, random_stored
from qdc.backends.cpu import products, support
from qdc.backends.cpu.modules import PackedLinear
from qdc.format.codec import Codec
from qdc.format.multibinary import MultiBinary
from qdc.format.trelliscode import TrellisCode

from .peers import Call, found, inputs

BASELINE, PACKED, TILES, DECODED = "bf16", "packed", "by tiles", "decoded"
TRELLIS = "trellis"


@dataclass
class Row:
    """A shape and a number of rows of activations."""

    name: str
    rows: int
    columns: int
    tokens: int
    threads: int
    seconds: dict[str, float] = field(default_factory=dict)
    """Median of a call, by method."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Median of what bf16 took over what a method took, turn by turn."""
    notes: dict[str, str] = field(default_factory=dict)
    """Why a method was not measured."""


def shapes(model: Model = LLADA) -> dict[str, Codec]:
    """The linears of a model as they are stored: orders of mean 2, and 8 bits for the head.

    One has trellis codes of 2 bits beside them.
    """
    width, hidden = model.width, model.hidden
    sizes = {"q, k, v, out": (width, width), "gate, up": (hidden, width), "down": (width, hidden)}
    codecs = {name: codec_of("multi-binary", *size) for name, size in sizes.items()}
    codecs["head"] = codec_of("uniform", model.vocabulary, width)
    return {**codecs, TRELLIS: codec_of("trellis", width, width)}


def measure(
    name: str, codec: Codec, tokens: list[int], threads: int, turns: int, *, peers: bool
) -> Iterator[Row]:
    """Measure one linear at some numbers of rows; tiles where many rows make them a rival.

    For one row trellis codes are decoded by their own formula too, as what no kernel reads is at
    every call: it takes so long that more rows are the same.
    """
    torch.set_num_threads(threads)
    stored = random_stored(codec, torch.Generator().manual_seed(0))
    packed = PackedLinear(codec, stored, None, torch.float32, "fast")
    dense = torch.randn(codec.rows, codec.columns, dtype=torch.bfloat16)
    others: dict[str, Call | str] = {}
    if peers and isinstance(codec, MultiBinary):
        others = dict(found(codec.rows, codec.columns, threads))
    for count in tokens:
        x = inputs(count, codec.columns)
        half = x.bfloat16()
        row = Row(name, codec.rows, codec.columns, count, threads)
        calls: dict[str, Callable[[], object]] = {
            BASELINE: lambda half=half: linear(half, dense),
            PACKED: lambda x=x: packed(x),
        }
        if isinstance(codec, TrellisCode) and count == 1:
            slow = products.Layer(codec, None, stored, torch.zeros(codec.rows), "fast")
            calls[DECODED] = lambda x=x, slow=slow: products.multiply(slow, x)
        if count >= 128:
            calls[TILES] = lambda x=x: _by_tiles(packed, x)
        for other, call in others.items():
            if isinstance(call, str):
                row.notes[other] = call
            else:
                calls[other] = lambda x=x, call=call: call(x)
        with torch.inference_mode():
            in_turns(row, calls, turns)
        yield row


def _by_tiles(packed: PackedLinear, x: torch.Tensor) -> torch.Tensor:
    """The way without look-ups."""
    usual = support.looks_up
    support.looks_up = lambda: False
    try:
        found_: torch.Tensor = packed(x)
    finally:
        support.looks_up = usual
    return found_


def in_turns(row: Row, calls: dict[str, Callable[[], object]], turns: int) -> None:
    """Time calls in turns.

    One thread is timed by the processor's time, which stands while others have the core.
    """
    clock = time.process_time if row.threads == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        names = list(calls)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begun = clock()
            calls[name]()
            if turn:  # the first compiles and warms up
                taken[name].append(clock() - begun)
    for name, seconds in taken.items():
        row.seconds[name] = statistics.median(seconds)
        pairs = zip(taken[BASELINE], seconds, strict=True)
        row.ratios[name] = statistics.median(base / other for base, other in pairs)
