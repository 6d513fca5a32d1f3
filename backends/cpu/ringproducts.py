"""Products with rings of trellis codes: activations are rotated, weights stay as they are.

W = scale * S_r H_r P H_c S_c, so P is multiplied with rotated inputs, and what comes out is
rotated back. How P is multiplied:

| | where | what |
|---|---|---|
| dot | few rows | decoded as it is multiplied, fp32 |
| whole | AVX-512, more rows | the same, whole numbers |
| tiles | everything else | written to a small buffer, and the library's product |
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from qdc.numerics.hadamard import transform_size, walsh_hadamard
from qdc.numerics.products import product

from . import support
from .ringlayout import RingLayout, level_table
from .rotations import has_kernel, rotate
from .workspace import reserve

if TYPE_CHECKING:
    from .products import Layer

FEW = 8
"""Rows up to which weights are multiplied as they come."""
FEWEST = 4
"""Rows up to which they are where whole numbers could be instead."""
TILE_BYTES = 2 << 20
"""Of the buffer that weights are written to, unless one ring of all columns is more."""


def multiply(layer: "Layer", layout: RingLayout, values: Tensor) -> Tensor:
    """``[M, columns] -> [M, rows]``: the product with the weight, and the bias, in fp32."""
    rotated, rows = _rotated_inputs(values.float(), layer.kept), values.shape[0]
    if layer.arithmetic == "fast" and support.looks_up() and _whole_is_faster(rows):
        mixed = _whole(layer.kept, layout, rotated)
    elif rows <= FEW:
        mixed = _dot(layer.kept, layout, rotated)
    else:
        exact = layer.arithmetic == "f32" or support.product_type() == torch.float32
        mixed = _by_tiles(layer.kept, layout, rotated, exact=exact)
    return _rotated_outputs(_without_padding(mixed, layout), layer)


def _whole_is_faster(rows: int) -> bool:
    from .products import MATRIX_ROWS

    return rows > FEWEST and (rows < MATRIX_ROWS or "amx-bf16" not in support.features())


def _whole(kept: Mapping[str, Tensor], layout: RingLayout, inputs: Tensor) -> Tensor:
    from . import kernels
    from .wholerings import LARGEST, PIECE

    count = inputs.shape[0]
    missing = -inputs.shape[1] % PIECE
    inputs = pad(inputs, (0, missing)) if missing else inputs
    rounded = torch.empty(inputs.shape[1] // PIECE, count, PIECE, dtype=torch.int16)
    steps = torch.empty(count, 1)
    kernels.rounding(PIECE, LARGEST)(
        inputs=inputs.data_ptr(),
        count=count,
        width=inputs.shape[1],
        rounded=rounded.data_ptr(),
        steps=steps.data_ptr(),
    )
    result = torch.zeros(count, layout.rings * layout.ring_rows)
    table = level_table(layout.code, layout.fields, torch.int16)
    _decode(kept, layout, table, "whole", (0, layout.rings), result, rounded, count)
    return result.mul_(steps)


def _dot(kept: Mapping[str, Tensor], layout: RingLayout, inputs: Tensor) -> Tensor:
    result = torch.zeros(inputs.shape[0], layout.rings * layout.ring_rows)
    table = level_table(layout.code, layout.fields, torch.int16)
    _decode(kept, layout, table, "dot", (0, layout.rings), result, inputs, len(inputs))
    return result


def _by_tiles(
    kept: Mapping[str, Tensor], layout: RingLayout, inputs: Tensor, *, exact: bool
) -> Tensor:
    """Some rings of all columns at a time; levels are whole numbers, exact in fp32."""
    height, columns = layout.ring_rows, layout.columns
    kind = torch.int16 if exact else torch.bfloat16
    table = level_table(layout.code, layout.fields, kind)
    step = max(1, TILE_BYTES // ring_bytes(layout, exact=exact))
    result = torch.empty(inputs.shape[0], layout.rings * height)
    factors = inputs if exact else inputs.to(kind)
    for start in range(0, layout.rings, step):
        count = min(step, layout.rings - start)
        tile = reserve("tile", (columns, count * height), kind)
        _decode(kept, layout, table, "tile", (start, count), tile)
        if exact:
            tile = reserve("wide", tuple(tile.shape), torch.float32).copy_(tile)
        result[:, start * height : (start + count) * height] = product(factors, tile)
    return result


def ring_bytes(layout: RingLayout, *, exact: bool) -> int:
    """Of one ring of all columns in a tile: 16 bits a weight, and fp32 beside them if exact."""
    return (6 if exact else 2) * layout.ring_rows * layout.columns


def _decode(
    kept: Mapping[str, Tensor],
    layout: RingLayout,
    table: Tensor,
    target: Literal["tile", "dot", "whole"],
    rings: tuple[int, int],
    to: Tensor,
    inputs: Tensor | None = None,
    many: int = 0,
) -> None:
    from . import kernels

    whole = target == "whole"
    kernel = kernels.whole_rings(layout.fields) if whole else kernels.rings(layout.fields, target)
    kernel(
        codes=kept["codes"].data_ptr(),
        late=kept["late"].data_ptr() - layout.late_byte,
        late_from=layout.late,
        ring_bits=layout.ring,
        rings=layout.rings,
        ring_rows=layout.ring_rows,
        table=table.data_ptr(),
        columns=layout.columns,
        first=rings[0],
        count=rings[1],
        inputs=0 if inputs is None else inputs.data_ptr(),
        many=many,
        target=to.data_ptr(),
        target_bytes=to.stride(0) * to.element_size(),
    )


def _without_padding(mixed: Tensor, layout: RingLayout) -> Tensor:
    """Rows as the layer has them, from those of padded rings."""
    if layout.height != layout.ring_rows:
        parts = mixed.view(-1, layout.rings, layout.ring_rows)[..., : layout.height]
        mixed = parts.reshape(-1, layout.rings * layout.height)
    return mixed[:, : layout.rows]


def _rotated_inputs(values: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    """Give H_c S_c x."""
    size = transform_size(values.shape[1])
    if not has_kernel(size):
        return walsh_hadamard(values * kept["before"], size)
    return rotate("inputs", values.contiguous(), kept["before"])


def _rotated_outputs(values: Tensor, layer: "Layer") -> Tensor:
    """Give factor * S_r H_r x + bias."""
    kept, size = layer.kept, transform_size(values.shape[1])
    if not has_kernel(size):
        return walsh_hadamard(values, size) * kept["factor"] * kept["after"] + layer.bias
    return rotate("outputs", values, kept["after"], kept["factor"], layer.bias)
