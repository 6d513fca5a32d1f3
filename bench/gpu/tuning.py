"""Choose kernels by measuring them on this card, before anything is reported.

The choices stay on disk, as those of every tuning do: what is measured afterwards is what a user of
this card gets from then on.
"""

import copy
import itertools
from unittest.mock import patch

import torch

from qdc.backends.triton.modules import PackedLinear
from qdc.backends.triton.parts import Part
from qdc.backends.triton.tuning import MeasuredChoice, choose, tune
from qdc.backends.triton.variants import Choice

from .card import Card
from .clock import Clock, OutOfTime
from .linears import copies_of
from .peers import dtype_of
from .sizes import Sizes
from .weights import codec_of, random_stored

CHOOSE = "qdc.backends.triton.operators.choose"
"""Where the operators look for a choice."""
Asked = tuple[int, int, int, int, int, torch.dtype]
"""What a choice is made from: the arguments of ``choose``, and the last ones of ``tune``."""


def measure(clock: Clock, card: Card, sizes: Sizes, budget: float) -> dict[str, str]:
    """Tune shape by shape until ``budget`` seconds are spent.

    Returns:
        What was chosen, by shape and rows of the input.
    """
    until = Clock(clock.device, min(budget, clock.left))
    chosen: dict[str, str] = {}
    for shape in sizes.shapes:
        if shape.codec != "multi-binary":
            continue
        generator = torch.Generator(clock.device).manual_seed(0)
        codecs = [codec_of(shape.codec, rows, shape.columns) for rows in shape.rows]
        parts = [Part(codec, random_stored(codec, generator), None) for codec in codecs]
        first = PackedLinear(parts, dtype_of(sizes.floating), clock.device)
        copies = copies_of(card, sum(buffer.nbytes for buffer in first.buffers()))
        modules = [first, *(copy.deepcopy(first) for _ in range(copies - 1))]
        for tokens in sizes.tuned:
            try:
                entry = _tune(until, modules, tokens, sizes)
            except OutOfTime:
                return chosen
            name = f"{shape.model} {shape.layer}, {tokens} rows"
            chosen[name] = f"{entry.variant.name} x {entry.split}"
    return chosen


def _tune(clock: Clock, modules: list[PackedLinear], tokens: int, sizes: Sizes) -> MeasuredChoice:
    module, dtype = modules[0], dtype_of(sizes.floating)
    x = torch.randn(tokens, module.columns, device=clock.device).to(dtype)
    others = itertools.cycle(modules)

    def run(choice: Choice) -> None:
        with patch(CHOOSE, lambda *_: choice):
            next(others)(x)

    asked: list[Asked] = []

    def note(*shape: *Asked) -> Choice:
        asked.append(shape)
        return choose(*shape)

    with patch(CHOOSE, note):
        module(x)
    [shape] = asked
    return tune(
        run, lambda call: 1e6 * clock.time([call] * len(modules), quick=True).seconds, *shape
    )
