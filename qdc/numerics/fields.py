"""Small unsigned integers packed into bytes as little-endian bit fields."""

from typing import Final

import torch
from torch import Tensor

FIELD_BITS: Final = (1, 2, 4, 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack ``bits``-wide codes along the last dimension (quant-dllm.md 9 no. 7).

    With f = 8 / bits fields a byte, column f b + j takes the bits from j * bits upwards of byte b.
    Padding fields are 0.

    Args:
        codes: uint8[..., g], each below 2^bits.
        bits: Width of a field: 1, 2, 4 or 8.

    Returns:
        uint8[..., ceil(g * bits / 8)].

    Raises:
        ValueError: If ``bits`` is another width, or a code does not fit.
    """
    fields = _fields(bits)
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes are uint8, not {codes.dtype}")
    if bits < 8 and bool((codes >= 2**bits).any()):
        raise ValueError(f"a code does not fit {bits} bits")
    count = -(-codes.shape[-1] // fields)
    padded = torch.nn.functional.pad(codes, (0, count * fields - codes.shape[-1]))
    groups = padded.reshape(*codes.shape[:-1], count, fields)
    packed = groups[..., 0].clone()
    for j in range(1, fields):
        packed |= groups[..., j] << (j * bits)
    return packed


def unpack_codes(packed: Tensor, bits: int, width: int) -> Tensor:
    """Undo ``pack_codes``.

    Args:
        packed: uint8[..., ceil(width * bits / 8)].
        bits: Width of a field: 1, 2, 4 or 8.
        width: Codes of a row; the padding after them is dropped unread.

    Returns:
        uint8[..., width].

    Raises:
        ValueError: If ``bits`` is another width, or ``width`` needs another number of bytes.
    """
    fields = _fields(bits)
    if packed.dtype != torch.uint8:
        raise ValueError(f"packed codes are uint8, not {packed.dtype}")
    if packed.shape[-1] != -(-width // fields):
        raise ValueError(f"{packed.shape[-1]} bytes do not hold {width} codes of {bits} bits")
    mask = 2**bits - 1
    codes = torch.stack([packed >> (j * bits) & mask for j in range(fields)], dim=-1)
    return codes.flatten(-2)[..., :width].contiguous()


def _fields(bits: int) -> int:
    """Count the fields of a byte, or refuse the width."""
    if bits not in FIELD_BITS:
        raise ValueError(f"codes have 1, 2, 4 or 8 bits, not {bits}")
    return 8 // bits
