"""Layers for kernels, random ones of each codec, and what rounding may cost them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from qdc.backends.triton.parts import Part
from qdc.format.multibinary import MultiBinary
from qdc.format.trelliscode import TrellisCode
from qdc.format.uniformgrid import UniformGrid
from qdc.numerics.hadamard import SEEDS
from qdc.numerics.tiling import Tiling

ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7, torch.float32: 2.0**-24}
"""The relative error of rounding: half a unit in the last place. Of bf16 a whole one, since
Triton's interpreter cuts its digits off."""


class Layer(NamedTuple):
    """A layer as the artifact holds it, its weight, and the size of the terms that add up to it."""

    part: Part
    dense: Tensor
    """``f64[rows, columns]``."""
    terms: Tensor
    """``f64[rows, columns]``: the sum of the components' magnitudes."""


def binary_layer(
    seed: int, rows: int, columns: int, block: int, orders: tuple[int, ...], scale_bits: int = 16
) -> Layer:
    """A random multi-binary layer; column scales of both signs, as the format allows."""
    draw = torch.Generator().manual_seed(seed)
    codec = MultiBinary(
        rows=rows,
        columns=columns,
        block=block,
        orders=orders,
        scale_bits=8 if scale_bits == 8 else 16,
        scale_code="logarithmic" if scale_bits == 8 else "linear",
    )
    planes = codec.planes
    signs = torch.randint(0, 2, (rows, planes, block), generator=draw, dtype=torch.int8) * 2 - 1
    row_scale = torch.rand(rows, planes, generator=draw).half() * 0.1
    col_scale = torch.rand(1, planes, block, generator=draw).half() + 0.25
    if scale_bits == 16:
        col_scale *= torch.randint(0, 2, col_scale.shape, generator=draw) * 2 - 1
    width = columns % block
    if width:
        col_scale[0, -orders[-1] :, width:] = 0
        signs[:, -orders[-1] :, width:] = -1
    working = {"signs": signs, "row_scale": row_scale, "col_scale": col_scale}
    stored = codec.pack(working)
    working = codec.unpack(stored)
    terms = torch.zeros(rows, columns, dtype=torch.float64)
    first = 0
    for number, one in enumerate(codec.components(working)):
        size = one.row_scale.double().abs()[:, :, None] * one.col_scale.double().abs()[:, None]
        terms[:, number * block : number * block + size.shape[2]] = size.sum(0)
        first += orders[number]
    return Layer(Part(codec, stored), codec.dense(working).double(), terms)


def uniform_layer(seed: int, rows: int, columns: int, group: int, bits: int, zero: str) -> Layer:
    """A random uniform layer."""
    draw = torch.Generator().manual_seed(seed)
    codec = UniformGrid.model_validate(
        {"rows": rows, "columns": columns, "group": group, "bits": bits, "zero": zero}
    )
    shape = (rows, codec.groups)
    codes = torch.randint(0, 2**bits, (*shape, group), generator=draw).to(torch.uint8)
    working = {"codes": codes, "scale": (torch.rand(shape, generator=draw) * 0.05 + 0.01).half()}
    if zero == "float":
        working["minimum"] = -torch.rand(shape, generator=draw).half()
    else:
        working["zero"] = torch.randint(0, 2**bits, shape, generator=draw).to(torch.uint8)
    stored = codec.pack(working)
    dense = codec.dense(codec.unpack(stored)).double()
    step = working["scale"].double().repeat_interleave(group, dim=1)[:, :columns]
    return Layer(Part(codec, stored), dense, dense.abs() + 2 * 2**bits * step)


def trellis_part(
    seed: int,
    rows: int,
    columns: int,
    *,
    height: int = 128,
    width: int = 1,
    inputs: int = 7,
    **fields: Any,
) -> Part:
    """Random rings of a layer; ``inputs`` is the seed of the rotation of its inputs."""
    draw = torch.Generator().manual_seed(seed)
    tiling = Tiling.fitted(rows, height, width)
    form = {"rate": 16, "window": 10, "code": "quadratic", **fields}
    codec = TrellisCode.model_validate(
        {"rows": rows, "columns": columns, "height": tiling.height, "width": tiling.width, **form}
    )
    (count,) = codec.specification()["codes"].shape
    outputs = int(torch.randint(SEEDS, (1,), generator=draw))
    assert isinstance(count, int)
    stored = {
        "codes": torch.randint(256, (count,), generator=draw, dtype=torch.uint8),
        "scale": torch.rand(1, generator=draw).half() * 0.05 + 0.01,
        "seeds": torch.tensor([inputs, outputs]).int(),
    }
    return Part(codec, stored)


def bound(x: Tensor, layer: Layer, roundings: int) -> Tensor:
    """How far an output may be from the exact one, ``f64[M, rows]``, to first order.

    Sums are fp32: each of the ``columns`` products, and of the few sums of partial results, is
    rounded once. ``roundings`` is how often a kernel rounds a weight, or a factor of it, to the
    dtype of ``x``; the output is rounded to it once more.
    """
    unit, columns = ROUNDOFF[x.dtype], x.shape[-1]
    size = x.double().abs() @ layer.terms.T
    exact = x.double() @ layer.dense.T
    # fp16 has no normal numbers below 2^-14: what is lost there does not scale with the weight.
    tiny = 2.0**-25 if x.dtype == torch.float16 else 0.0
    lost = x.double().abs().sum(-1, keepdim=True) * tiny * roundings
    accumulation = (columns + 64) * ROUNDOFF[torch.float32]
    return 1.01 * ((roundings * unit + accumulation) * size + unit * exact.abs() + lost) + 1e-30


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors of floats hold NaN: what a kernel does not write shows."""
    empty = torch.empty

    def poisoned(*size: object, **options: object) -> Tensor:
        made: Tensor = empty(*size, **options)  # type: ignore[call-overload]
        return made.fill_(float("nan")) if made.is_floating_point() else made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        yield
