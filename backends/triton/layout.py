"""The layout that kernels read, derived from the portable tensors by pure functions.

A row of the portable format keeps its planes together; a kernel wants the rows of one plane
together, so that a tile of rows is one contiguous load. Rows are padded to whole tiles, joined
linears one below the other. Blocks are cut into *sub-blocks* of ``width`` columns, and the planes
of a sub-block into *pairs*, with a *single* left over where the order is odd: orders 1 to 4 take
no more bits than they have, and two loops without branches run them all.

Byte ``i`` of a row of a plane holds, in its bit ``j``, the sign of column ``j * width / 8 + i``:
shifting all bytes by one amount gives the signs of neighbouring columns, where tensor cores want
them, and no sign changes its thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import pad

from qdc.format.multibinary import MultiBinary
from qdc.format.uniformgrid import UniformGrid
from qdc.numerics.bitplanes import pack_signs, unpack_signs
from qdc.numerics.fields import pack_codes

from .parts import Part, span_of, tile_columns

TILE_ROWS = 128
"""Rows of each linear are padded to a multiple of this."""


@dataclass(frozen=True)
class BinaryLayout:
    """Planes of one or several joined linears, as kernels read them.

    ``N`` padded rows, ``P`` planes, ``U`` sub-planes, ``S`` segments, ``W`` = ``width``.
    """

    planes: Tensor
    """``u8[U, N, W / 8]``, the sub-planes of pairs first."""
    row_scale: Tensor
    """``f16[P, N]``, 0 in the padding."""
    col_scale: Tensor
    """``f16[S, U, W]``, 0 in the padding."""
    pairs: Tensor
    """``i32[pairs, 3]``: number of the sub-block, and the rows of ``row_scale`` of both planes."""
    singles: Tensor
    """``i32[singles, 2]``: number of the sub-block, and the row of ``row_scale``."""
    blocks: Tensor
    """``i32[sub-blocks, 10]``: number, order, four sub-planes, their rows of scales."""
    tiles: Tensor
    """``i32[N / 128, 3]``: segment, first output, outputs."""
    width: int
    columns: int
    rows: tuple[int, ...]
    """Outputs of each segment."""

    def pair_planes(self) -> Tensor:
        """``i16[pairs, N, W / 8]``: a byte of the first plane of a pair, and one of the second.

        The compiler lets the width of what was loaded decide how a tensor core's operands lie in
        registers; from 16 bits on, the activations come out of shared memory as they are wanted.
        """
        end = 2 * len(self.pairs)
        both = torch.stack([self.planes[0:end:2], self.planes[1:end:2]], dim=-1)
        return both.view(torch.int16)[..., 0]

    def single_planes(self) -> Tensor:
        """``u8[singles, N, W / 8]``; a copy, since a view would keep the planes of pairs alive."""
        return self.planes[2 * len(self.pairs) :].clone()


def row_tiles(rows: Sequence[int], height: int = TILE_ROWS) -> Tensor:
    """``i32[tiles, 3]``: the segment of each tile of rows, its first output, how many it has."""
    found = []
    for segment, (count, first) in enumerate(zip(rows, accumulate(rows, initial=0), strict=False)):
        for start in range(0, count, height):
            found.append([segment, first + start, min(height, count - start)])
    return torch.tensor(found, dtype=torch.int32)


def pad_rows(tensor: Tensor, rows: int, dim: int) -> Tensor:
    """Zeros behind ``rows`` of dimension ``dim`` up to a multiple of ``TILE_ROWS``."""
    missing = -rows % TILE_ROWS
    return pad(tensor, (0, 0) * (tensor.ndim - 1 - dim) + (0, missing))


def swap_bits(planes: Tensor) -> Tensor:
    """Bytes ``u8[..., W / 8]`` of neighbouring columns to bytes that hold every W/8-th column."""
    width = 8 * planes.shape[-1]
    signs = unpack_signs(planes, width).reshape(*planes.shape[:-1], 8, width // 8)
    return pack_signs(signs.transpose(-1, -2).flatten(-2))


def restore_bits(planes: Tensor) -> Tensor:
    """The inverse of ``swap_bits``."""
    width = 8 * planes.shape[-1]
    signs = unpack_signs(planes, width).reshape(*planes.shape[:-1], width // 8, 8)
    return pack_signs(signs.transpose(-1, -2).flatten(-2))


def binary_layout(parts: Sequence[Part]) -> BinaryLayout:
    """Lay joined multi-binary linears out; they have equal columns, blocks and orders."""
    codecs = [part.codec for part in parts if isinstance(part.codec, MultiBinary)]
    codec = codecs[0]
    width = tile_columns(codec.block)
    assert width is not None
    pairs, singles, blocks, order = _plan(codec, width)
    planes, row_scales, col_scales = [], [], []
    for part, own in zip(parts, codecs, strict=True):
        cut = codec.block // width
        bits = part.stored["planes"].reshape(own.rows, own.planes, cut, width // 8)
        chosen = bits[:, [p for p, _ in order], [s for _, s in order]]
        planes.append(pad_rows(swap_bits(chosen).transpose(0, 1), own.rows, 1))
        row_scale, col_scale = own.scales(part.stored)
        row_scales.append(pad_rows(row_scale.T, own.rows, 1))
        columns = col_scale.reshape(own.planes, cut, width)
        col_scales.append(columns[[p for p, _ in order], [s for _, s in order]])
    rows = tuple(own.rows for own in codecs)
    return BinaryLayout(
        planes=torch.cat(planes, dim=1).contiguous(),
        row_scale=torch.cat(row_scales, dim=1).contiguous(),
        col_scale=torch.stack(col_scales),
        pairs=torch.tensor(pairs, dtype=torch.int32).reshape(-1, 3),
        singles=torch.tensor(singles, dtype=torch.int32).reshape(-1, 2),
        blocks=torch.tensor(blocks, dtype=torch.int32),
        tiles=row_tiles(rows),
        width=width,
        columns=codec.columns,
        rows=rows,
    )


def _plan(
    codec: MultiBinary, width: int
) -> tuple[list[list[int]], list[list[int]], list[list[int]], list[tuple[int, int]]]:
    """Pairs, singles, blocks, and for each sub-plane the plane and the part of it that it is."""
    pairs, singles = [], []
    members: list[list[tuple[int, int]]] = []
    starts: list[int] = []
    first = 0
    for block, count in enumerate(codec.orders):
        for part in range(codec.block // width):
            start = block * codec.block + part * width
            if start < codec.columns:
                starts.append(start)
                members.append([(first + k, part) for k in range(count)])
        first += count
    two: list[tuple[int, int]] = []
    one: list[tuple[int, int]] = []
    for start, planes in zip(starts, members, strict=True):
        for k in range(0, len(planes) - 1, 2):
            pairs.append([start // width, planes[k][0], planes[k + 1][0]])
            two += planes[k : k + 2]
        if len(planes) % 2:
            singles.append([start // width, planes[-1][0]])
            one.append(planes[-1])
    order = two + one
    place = {member: number for number, member in enumerate(order)}
    blocks = []
    for start, planes in zip(starts, members, strict=True):
        filler = [0] * (4 - len(planes))
        found, scales = [place[p] for p in planes], [p for p, _ in planes]
        blocks.append([start // width, len(planes), *found, *filler, *scales, *filler])
    return pairs, singles, blocks, order


@dataclass(frozen=True)
class UniformLayout:
    """Codes of one or several joined linears; ``G`` groups, ``N`` padded rows, ``T`` tiles."""

    codes: Tensor
    """``u8[T, N, W * bits / 8]``; field ``j`` of byte ``i`` is column ``j * W * bits / 8 + i``."""
    scale: Tensor
    """``f16[G, N]``, 0 in the padding."""
    offset: Tensor
    """``f32[G, N]``, the value of the middle code, 2^(bits - 1)."""
    tiles: Tensor
    """``i32[N / 128, 3]``: segment, first output, outputs."""
    width: int
    group: int
    columns: int
    rows: tuple[int, ...]


def uniform_layout(parts: Sequence[Part]) -> UniformLayout:
    """Lay joined uniform linears out; they have equal columns, groups and bits."""
    codecs = [part.codec for part in parts if isinstance(part.codec, UniformGrid)]
    codec = codecs[0]
    span = span_of(codec)
    width = tile_columns(span)
    assert width is not None
    fields = 8 // codec.bits
    codes, scales, offsets = [], [], []
    for part, own in zip(parts, codecs, strict=True):
        working = own.unpack(part.stored)
        flat = working["codes"].flatten(1)[:, : own.columns]
        flat = pad(flat, (0, -own.columns % width))
        spaced = flat.reshape(own.rows, -1, fields, width // fields).transpose(2, 3)
        packed = pack_codes(spaced.contiguous(), own.bits)[..., 0].transpose(0, 1)
        codes.append(pad_rows(packed, own.rows, 1))
        step = working["scale"].float()
        middle = own.minima(working) + step * 2 ** (own.bits - 1)
        scales.append(pad_rows(step.half().T, own.rows, 1))
        offsets.append(pad_rows(middle.T, own.rows, 1))
    rows = tuple(own.rows for own in codecs)
    return UniformLayout(
        codes=torch.cat(codes, dim=1).contiguous(),
        scale=torch.cat(scales, dim=1).contiguous(),
        offset=torch.cat(offsets, dim=1).contiguous(),
        tiles=row_tiles(rows),
        width=width,
        group=span,
        columns=codec.columns,
        rows=rows,
    )
