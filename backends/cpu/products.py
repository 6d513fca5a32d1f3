"""Which way a product takes, and the calls of the kernels.

| | where | what |
|---|---|---|
| look-up | AVX-512, signs and codes up to 4 bits | tables of sums of inputs |
| octets | AVX-512, codes of 8 bits, few rows | whole numbers |
| dot | every processor, few rows | weights in registers, fp32 |
| tiles | everything else | weights written to a small buffer, and the library's product |

Trellis codes have ways of their own: see ``ringproducts``.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from qdc.format.codec import Codec
from qdc.numerics.products import linear, product

from . import support
from .packing import Layout, padded_inputs
from .ringlayout import RingLayout
from .workspace import address, reserve

Arithmetic = Literal["fast", "f32"]
FP32, HALF = 4, 2
"""Bytes of numbers that kernels write to memory that is reserved."""
TILE_BYTES = 4 << 20
"""Of the buffer that weights are written to: so much that it stays in the cache."""
TABLES_BYTES = 3 << 18
"""Of the tables of a pass: a cache of a processor's own has 1 MiB and more."""
MOST_TOGETHER = 64
"""Rows of activations of a pass."""
FEW = 8
"""Rows up to which weights are multiplied as they come."""
OCTET_ROWS, OCTET_ROWS_NARROW = 64, 8
"""Rows up to which whole numbers are faster: with pieces of 256 columns and more, and with less."""
MATRIX_ROWS = 32
"""Rows from which a processor with a matrix unit is faster by tiles."""
DENSEST = 2.5
"""Bits a weight up to which look-ups are as fast as tiles, whatever the number of rows."""


class Layer(NamedTuple):
    """A packed layer, as products take it."""

    codec: Codec
    layout: Layout | RingLayout | None
    """None: no kernel reads the codec."""
    kept: Mapping[str, Tensor]
    """As ``packing.kept`` gives it with a layout; the stored tensors without."""
    bias: Tensor
    """fp32[padded rows], or [rows] without a layout."""
    arithmetic: Arithmetic


def multiply(layer: Layer, values: Tensor) -> Tensor:
    """``[M, columns] -> [M, rows]``: the product with the weight, and the bias, in fp32.

    The same bytes for the same inputs, however many threads there are but for tiles, where it is as
    the library has it.
    """
    layout = layer.layout
    if layout is None or not support.has_compiler():
        return _by_codec(layer, values)
    if isinstance(layout, RingLayout):
        from . import ringproducts

        return ringproducts.multiply(layer, layout, values)
    rows = values.shape[0]
    if layer.arithmetic == "fast" and support.looks_up():
        if layout.bits == 8 and _octets_are_faster(layout, rows):
            return _octets(layer, layout, values)
        if layout.bits < 8 and _look_up_is_faster(layer, layout, rows):
            return _look_up(layer, layout, values)
    if rows <= FEW:
        return _dot(layer, layout, values)
    return _by_tiles(layer, layout, values)


def _octets_are_faster(layout: Layout, rows: int) -> bool:
    from .octets import piece_width

    width = piece_width(layout.width)
    return width is not None and rows <= (OCTET_ROWS if width >= 256 else OCTET_ROWS_NARROW)


def _look_up_is_faster(layer: Layer, layout: Layout, rows: int) -> bool:
    if "unit_bytes" not in layer.kept:
        return False
    if rows >= MATRIX_ROWS and "amx-bf16" in support.features():
        return False
    if rows <= MATRIX_ROWS or support.product_type() == torch.float32:
        return True
    return 8 * layout.row_bytes <= DENSEST * layout.padded_columns


def _look_up(layer: Layer, layout: Layout, values: Tensor) -> Tensor:
    from . import kernels
    from .lookup import MOST_GROUPS
    from .tables import table_bytes

    inputs, kept = padded_inputs(values, layout), layer.kept
    count, units = values.shape[0], len(kept["unit_bytes"])
    size = table_bytes(layout.bits)
    chunk = _pass_rows(count, size)
    span = max(1, min(units, TABLES_BYTES // (chunk * size)))
    result = torch.empty(count, layout.padded)
    kernels.lookup(layout.bits, layout.place)(
        inputs=inputs.data_ptr(),
        input_bytes=4 * layout.padded_columns,
        count=count,
        chunk=chunk,
        span=span,
        groups=MOST_GROUPS if count > 2 else 1,
        units=units,
        unit_bytes=kept["unit_bytes"].data_ptr(),
        unit_inputs=kept["unit_inputs"].data_ptr(),
        unit_scales=kept["unit_scales"].data_ptr(),
        columns=_address(kept, "columns"),
        bits=kept["bits"].data_ptr(),
        row_bytes=layout.row_bytes,
        rows=layout.rows,
        padded=layout.padded,
        scales=kept["scales"].data_ptr(),
        places=_address(kept, "places"),
        bias=layer.bias.data_ptr(),
        tables=address("tables", span * chunk * size),
        steps=address("steps", FP32 * span * chunk),
        sums=address("sums", FP32 * span * chunk),
        result=result.data_ptr(),
    )
    return result[:, : layout.rows]


def _octets(layer: Layer, layout: Layout, values: Tensor) -> Tensor:
    from . import kernels
    from .octets import piece_width

    inputs, kept = padded_inputs(values, layout), layer.kept
    count, width = values.shape[0], piece_width(layout.width)
    assert width is not None
    pieces = layout.padded_columns // width
    chunk = _pass_rows(count, 2 * layout.padded_columns)
    result = torch.empty(count, layout.padded)
    kernels.octets(layout.place)(
        inputs=inputs.data_ptr(),
        input_bytes=4 * layout.padded_columns,
        count=count,
        chunk=chunk,
        pieces=pieces,
        width=width,
        groups=layout.blocks,
        per_group=layout.width // width,
        bits=kept["bits"].data_ptr(),
        row_bytes=layout.row_bytes,
        rows=layout.rows,
        scales=kept["scales"].data_ptr(),
        places=kept["places"].data_ptr(),
        bias=layer.bias.data_ptr(),
        rounded=address("tables", HALF * chunk * layout.padded_columns),
        steps=address("steps", FP32 * chunk * pieces),
        sums=address("sums", FP32 * chunk * layout.blocks),
        result=result.data_ptr(),
        padded=layout.padded,
    )
    return result[:, : layout.rows]


def _dot(layer: Layer, layout: Layout, values: Tensor) -> Tensor:
    inputs = padded_inputs(values, layout)
    result = torch.empty(values.shape[0], layout.padded)
    _expand(layer, layout, "dot", (0, layout.rows), result, inputs)
    return result[:, : layout.rows]


def _by_tiles(layer: Layer, layout: Layout, values: Tensor) -> Tensor:
    kind = torch.float32 if layer.arithmetic == "f32" else support.product_type()
    inputs = values.to(kind)
    result = torch.empty(values.shape[0], layout.rows)
    step = max(1, TILE_BYTES // (kind.itemsize * layout.padded_columns))
    for start in range(0, layout.rows, step):
        stop = min(start + step, layout.rows)
        tile = reserve("tile", (stop - start, layout.padded_columns), kind)
        _expand(layer, layout, "f32" if kind == torch.float32 else "bf16", (start, stop), tile)
        weight, bias = tile[:, : layout.columns], layer.bias[start:stop]
        if kind == torch.float32:
            result[:, start:stop] = linear(inputs, weight, bias)
        else:
            torch.add(torch.mm(inputs, weight.T), bias, out=result[:, start:stop])
    return result


def _expand(
    layer: Layer,
    layout: Layout,
    target: Literal["f32", "bf16", "dot"],
    rows: tuple[int, int],
    to: Tensor,
    inputs: Tensor | None = None,
) -> None:
    from . import kernels
    from .expand import vectors_of

    kept, vectors = layer.kept, vectors_of(layout.width)
    assert vectors is not None, "layouts have blocks of 16 columns"
    kernels.expand(layout.bits, layout.place, vectors, target)(
        first=rows[0],
        count=rows[1] - rows[0],
        padded=layout.padded,
        blocks=layout.blocks,
        width=layout.width,
        orders=kept["orders"].data_ptr(),
        bits=kept["bits"].data_ptr(),
        row_bytes=layout.row_bytes,
        columns=_address(kept, "columns"),
        scales=kept["scales"].data_ptr(),
        places=_address(kept, "places"),
        inputs=0 if inputs is None else inputs.data_ptr(),
        input_bytes=4 * layout.padded_columns,
        many=0 if inputs is None else inputs.shape[0],
        bias=layer.bias.data_ptr(),
        target=to.data_ptr(),
        target_bytes=to.stride(0) * to.element_size(),
    )


def _by_codec(layer: Layer, values: Tensor) -> Tensor:
    """What no kernel reads: decoded by the codec itself, a few rows at a time where it can."""
    codec = layer.codec
    kind = torch.float32 if layer.arithmetic == "f32" else support.product_type()
    inputs = values.to(kind)
    if not codec.by_rows:
        weight = codec.dense(codec.unpack(layer.kept)).to(kind)
        return product(inputs, weight.T) + layer.bias
    step = max(1, TILE_BYTES // (4 * codec.columns))
    parts = []
    for start in range(0, codec.rows, step):
        rows = slice(start, min(start + step, codec.rows))
        weight = codec.dense_rows(layer.kept, rows).to(kind)
        parts.append(product(inputs, weight.T) + layer.bias[rows])
    return torch.cat(parts, dim=1)


def _pass_rows(count: int, row_bytes: int) -> int:
    """Rows of activations of a pass: even passes, no larger than what fits."""
    most = max(2, min(MOST_TOGETHER, TABLES_BYTES // row_bytes))
    passes = -(-count // most)
    return -(-count // passes)


def _address(kept: Mapping[str, Tensor], name: str) -> int:
    return kept[name].data_ptr() if name in kept else 0
