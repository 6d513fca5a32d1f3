"""Ternary codes packed five a byte, as digits of base 3: 1.6 bits a code."""

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

TRITS: Final = 5
"""Codes of a byte: 3^5 = 243 of its 256 values are used."""


def pack_trits(codes: Tensor) -> Tensor:
    """Pack codes of -1, 0 and +1 along the last dimension.

    Byte b is the sum over j of 3^j times the digit of column 5 b + j; a digit is the code plus 1.
    Padding digits are 0.

    Args:
        codes: int8[..., g], only -1, 0 and +1.

    Returns:
        uint8[..., ceil(g / 5)].

    Raises:
        ValueError: If a code is another number, or not int8.
    """
    if codes.dtype != torch.int8 or bool(((codes < -1) | (codes > 1)).any()):
        raise ValueError("ternary codes are int8: -1, 0 or +1")
    digits = pad((codes + 1).to(torch.uint8), (0, -codes.shape[-1] % TRITS))
    groups = digits.reshape(*digits.shape[:-1], -1, TRITS)
    packed: Tensor = groups[..., TRITS - 1].clone()
    for j in reversed(range(TRITS - 1)):
        packed = packed.mul_(3).add_(groups[..., j])
    return packed


def unpack_trits(packed: Tensor, width: int) -> Tensor:
    """Undo ``pack_trits``.

    Args:
        packed: uint8[..., ceil(width / 5)]. The values above 242, which ``pack_trits`` never
            writes, are read digit by digit as well, so any byte gives codes.
        width: Codes of a row; the padding digits after them are dropped unread.

    Returns:
        int8[..., width], only -1, 0 and +1.

    Raises:
        ValueError: If ``packed`` is no uint8, or ``width`` needs another number of bytes.
    """
    if packed.dtype != torch.uint8:
        raise ValueError(f"packed codes are uint8, not {packed.dtype}")
    if packed.shape[-1] != -(-width // TRITS):
        raise ValueError(f"{packed.shape[-1]} bytes do not hold {width} ternary codes")
    digits = torch.stack([packed // 3**j % 3 for j in range(TRITS)], dim=-1)
    return digits.flatten(-2)[..., :width].to(torch.int8) - 1
