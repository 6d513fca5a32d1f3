"""Time linears of whole numbers against torch's bf16 ones, in turns."""

from collections.abc import Callable, Iterator

import torch
from torch.nn.functional import linear

from bench.common.shapes import LLADA, Model
from bench.gpu.weights import random_stored
from qdc.format.uniformgrid import UniformGrid
from qdc.ir.activations import LayerActivations, RowFormat
from qdc.runtime.activations import READS, InputTransform
from qdc.runtime.integers import IntegerLinear

from .linears import BASELINE, Row, in_turns
from .peers import inputs

GROUPED = 128
PRODUCT = "product alone"


def grids(model: Model = LLADA) -> dict[str, UniformGrid]:
    """One linear of a model as codes of 8 and 4 bits: scales of whole rows, and of groups."""
    width = model.width
    return {
        f"{bits} bits, {name}": UniformGrid(
            rows=width, columns=width, bits=bits, group=group, zero="packed"
        )
        for bits in (8, 4)
        for name, group in (("whole rows", width), (f"groups of {GROUPED}", GROUPED))
    }


def measure(
    name: str, codec: UniformGrid, tokens: list[int], threads: int, turns: int
) -> Iterator[Row]:
    """Measure a linear whose inputs are codes of 8 bits, one scale a token, as it comes."""
    torch.set_num_threads(threads)
    stored = random_stored(codec, torch.Generator().manual_seed(0))
    whole = IntegerLinear(codec, stored, None, torch.float32)
    does = LayerActivations(input=RowFormat(bits=8))
    whole.add_module(READS, InputTransform(codec.columns, does, {}))
    dense = torch.randn(codec.rows, codec.columns, dtype=torch.bfloat16)
    for count in tokens:
        x = inputs(count, codec.columns)
        half = x.bfloat16()
        codes = torch.randint(-127, 128, x.shape, dtype=torch.int8)
        matrix = whole.codes.view(codec.rows, codec.columns)
        row = Row(name, codec.rows, codec.columns, count, threads)
        calls: dict[str, Callable[[], object]] = {
            BASELINE: lambda half=half: linear(half, dense),
            "whole numbers": lambda x=x: whole(x),
            PRODUCT: lambda codes=codes, matrix=matrix: torch._int_mm(codes, matrix.T),
        }
        with torch.inference_mode():
            in_turns(row, calls, turns)
        yield row
