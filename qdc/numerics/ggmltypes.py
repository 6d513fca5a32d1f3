"""Block types of ggml: how the bytes of a block become levels, exactly as ggml decodes them.

Every type here is one formula with parts left out. A weight is ``d * scale * code - dmin * least``:
``d`` and ``dmin`` are fp16 numbers of a block, ``scale`` and ``least`` small integers of each
sub-block in it. ``d * scale * code`` is exact in fp32 but for Q6_K, which rounds once, as ggml
does. Source: engines-2026.md, GGUF; layouts compared with ggml itself, byte by byte
(``tests/numerics/test_ggmltypes.py``).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

TypeName = Literal["Q1_0", "Q2_0", "TQ2_0", "Q2_K", "Q3_K", "Q6_K", "Q8_0"]


class Fields(NamedTuple):
    """What the bytes of blocks say; ``B`` blocks a row, ``S`` sub-blocks a block.

    Attributes:
        codes: i8[rows, B, S, w], signed, between the lowest and the highest code of the type.
        d: f32[rows, B], fits fp16.
        scales: i8[rows, B, S]; None for a type without.
        dmin: f32[rows, B], fits fp16; None for a type without minima.
        minima: u8[rows, B, S], or None.
    """

    codes: Tensor
    d: Tensor
    scales: Tensor | None = None
    dmin: Tensor | None = None
    minima: Tensor | None = None

    @classmethod
    def joined(cls, blocks: "Sequence[Fields]") -> "Fields":
        """Blocks of the same rows side by side."""

        def side_by_side(parts: Iterable[Tensor | None]) -> Tensor | None:
            there = [part for part in parts if part is not None]
            return torch.cat(there, 1) if there else None

        codes, d, *others = (side_by_side(parts) for parts in zip(*blocks, strict=True))
        assert codes is not None
        assert d is not None
        return cls(codes, d, *others)


@dataclass(frozen=True)
class BlockType:
    """One type: its sizes, its ranges, and its bytes."""

    name: TypeName
    number: int
    """What stands in a GGUF file for the type."""
    width: int
    """Columns of a block."""
    nbytes: int
    """Bytes of a block."""
    bits: int
    """Bits of a code."""
    codes: tuple[int, int]
    """The lowest and the highest code."""
    unpack: Callable[[Tensor], Fields]
    """Bytes ``u8[rows, B, nbytes]`` to fields."""
    pack: Callable[[Fields], Tensor]
    """The inverse."""
    group: int = 0
    """Columns of a sub-block, which shares a scale; 0: those of the block."""
    scales: tuple[int, int] | None = None
    """The lowest and the highest scale of a sub-block; None for a type without."""
    minima: int = 0
    """The highest minimum of a sub-block; 0 for a type without."""
    step: int = 1
    """Distance of two codes."""

    @property
    def sub(self) -> int:
        """Columns that share a scale."""
        return self.group or self.width


def decode(fields: Fields) -> Tensor:
    """Write blocks out: ``f32[rows, columns]``, bit for bit what ggml makes of their bytes."""
    codes = fields.codes.float()
    step = fields.d[..., None]
    if fields.scales is not None:
        step = step * fields.scales
    dense = step[..., None] * codes
    if fields.dmin is not None and fields.minima is not None:
        dense = dense - (fields.dmin[..., None] * fields.minima)[..., None]
    return dense.flatten(1)


def as_half(values: Tensor) -> Tensor:
    """Bytes ``u8[..., 2n]`` to numbers ``f32[..., n]``."""
    return values.contiguous().view(torch.float16).float()


def half_bytes(values: Tensor) -> Tensor:
    """Numbers ``f32[...]`` that fit fp16 to their bytes, ``u8[..., 2]``."""
    return values.half()[..., None].contiguous().view(torch.uint8)


def _spread(values: Tensor, bits: int, run: int) -> Tensor:
    """Bit fields to codes: each run of bytes holds all lowest fields, then the next ones, ...

    ``u8[..., n] -> u8[..., n * 8 / bits]``.
    """
    runs = torch.unflatten(values, -1, (-1, 1, run))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=values.device)[:, None]
    fields: Tensor = runs >> shifts & 2**bits - 1
    return fields.flatten(-3)


def _gather(codes: Tensor, bits: int, run: int) -> Tensor:
    """The inverse of ``_spread``."""
    fields = torch.unflatten(codes, -1, (-1, 8 // bits, run))
    packed = torch.zeros_like(fields[..., 0, :])
    for place in range(8 // bits):
        packed |= fields[..., place, :] << place * bits
    return packed.flatten(-2)


def _unpack_q1_0(blocks: Tensor) -> Fields:
    bits = _spread(blocks[..., 2:], 1, 1)
    return Fields((2 * bits.to(torch.int8) - 1)[..., None, :], as_half(blocks[..., :2])[..., 0])


def _pack_q1_0(fields: Fields) -> Tensor:
    bits = (fields.codes > 0).to(torch.uint8).flatten(-2)
    return torch.cat([half_bytes(fields.d), _gather(bits, 1, 1)], -1)


def _unpack_q2_0(blocks: Tensor) -> Fields:
    codes = _spread(blocks[..., 2:], 2, 1).to(torch.int8) - 1
    return Fields(codes[..., None, :], as_half(blocks[..., :2])[..., 0])


def _pack_q2_0(fields: Fields) -> Tensor:
    codes = (fields.codes + 1).to(torch.uint8).flatten(-2)
    return torch.cat([half_bytes(fields.d), _gather(codes, 2, 1)], -1)


def _unpack_tq2_0(blocks: Tensor) -> Fields:
    codes = _spread(blocks[..., :64], 2, 32).to(torch.int8) - 1
    return Fields(codes[..., None, :], as_half(blocks[..., 64:])[..., 0])


def _pack_tq2_0(fields: Fields) -> Tensor:
    codes = (fields.codes + 1).to(torch.uint8).flatten(-2)
    return torch.cat([_gather(codes, 2, 32), half_bytes(fields.d)], -1)


def _unpack_q8_0(blocks: Tensor) -> Fields:
    codes = blocks[..., 2:].contiguous().view(torch.int8)
    return Fields(codes[..., None, :], as_half(blocks[..., :2])[..., 0])


def _pack_q8_0(fields: Fields) -> Tensor:
    codes = fields.codes.flatten(-2).contiguous().view(torch.uint8)
    return torch.cat([half_bytes(fields.d), codes], -1)


def _unpack_q2_k(blocks: Tensor) -> Fields:
    both, codes = blocks[..., :16], _spread(blocks[..., 16:80], 2, 32)
    halves = as_half(blocks[..., 80:84])
    return Fields(
        torch.unflatten(codes.to(torch.int8), -1, (16, 16)),
        halves[..., 0],
        (both & 15).to(torch.int8),
        halves[..., 1],
        both >> 4,
    )


def _pack_q2_k(fields: Fields) -> Tensor:
    assert fields.scales is not None
    assert fields.minima is not None
    assert fields.dmin is not None
    both = fields.scales.to(torch.uint8) | fields.minima << 4
    codes = _gather(fields.codes.to(torch.uint8).flatten(-2), 2, 32)
    return torch.cat([both, codes, half_bytes(fields.d), half_bytes(fields.dmin)], -1)


def _unpack_q3_k(blocks: Tensor) -> Fields:
    high = _spread(blocks[..., :32], 1, 32).to(torch.int8)
    low = _spread(blocks[..., 32:96], 2, 32).to(torch.int8)
    # Four low bits of a scale in eight bytes, its two high bits in four.
    scales = _spread(blocks[..., 96:104], 4, 8) | _spread(blocks[..., 104:108], 2, 4) << 4
    return Fields(
        torch.unflatten(low + 4 * high - 4, -1, (16, 16)),
        as_half(blocks[..., 108:110])[..., 0],
        scales.to(torch.int8) - 32,
    )


def _pack_q3_k(fields: Fields) -> Tensor:
    assert fields.scales is not None
    codes = (fields.codes + 4).to(torch.uint8).flatten(-2)
    scales = (fields.scales + 32).to(torch.uint8)
    parts = [_gather(codes >> 2, 1, 32), _gather(codes & 3, 2, 32)]
    parts += [_gather(scales & 15, 4, 8), _gather(scales >> 4, 2, 4)]
    return torch.cat([*parts, half_bytes(fields.d)], -1)


def _unpack_q6_k(blocks: Tensor) -> Fields:
    low, high = _spread(blocks[..., :128], 4, 64), _spread(blocks[..., 128:192], 2, 32)
    codes = (low | high << 4).to(torch.int8) - 32
    return Fields(
        torch.unflatten(codes, -1, (16, 16)),
        as_half(blocks[..., 208:210])[..., 0],
        blocks[..., 192:208].contiguous().view(torch.int8),
    )


def _pack_q6_k(fields: Fields) -> Tensor:
    assert fields.scales is not None
    codes = (fields.codes + 32).to(torch.uint8).flatten(-2)
    parts = [_gather(codes & 15, 4, 64), _gather(codes >> 4, 2, 32)]
    return torch.cat([*parts, fields.scales.view(torch.uint8), half_bytes(fields.d)], -1)


TYPES: Final[dict[TypeName, BlockType]] = {
    each.name: each
    for each in (
        BlockType("Q1_0", 41, 128, 18, 1, (-1, 1), _unpack_q1_0, _pack_q1_0, step=2),
        BlockType("Q2_0", 42, 64, 18, 2, (-1, 2), _unpack_q2_0, _pack_q2_0),
        BlockType("TQ2_0", 35, 256, 66, 2, (-1, 2), _unpack_tq2_0, _pack_tq2_0),
        BlockType("Q2_K", 10, 256, 84, 2, (0, 3), _unpack_q2_k, _pack_q2_k, 16, (0, 15), 15),
        BlockType("Q3_K", 11, 256, 110, 3, (-4, 3), _unpack_q3_k, _pack_q3_k, 16, (-32, 31)),
        BlockType("Q6_K", 14, 256, 210, 6, (-32, 31), _unpack_q6_k, _pack_q6_k, 16, (-128, 127)),
        BlockType("Q8_0", 8, 32, 34, 8, (-128, 127), _unpack_q8_0, _pack_q8_0),
    )
}
