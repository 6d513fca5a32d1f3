"""Signs packed into bit planes."""

import torch
from torch import Tensor

from qdc.numerics.fields import pack_codes, unpack_codes


def pack_signs(signs: Tensor) -> Tensor:
    """Pack signs, eight columns a byte (quant-dllm.md 4.1, 9 no. 7).

    Bit j, counted from the lowest, of byte b is column 8 b + j; 1 stands for +1; padding bits
    are 0.

    Args:
        signs: int8[..., g], only -1 and +1.

    Returns:
        uint8[..., ceil(g / 8)].

    Raises:
        ValueError: If an entry is neither -1 nor +1.
    """
    if not bool(((signs == 1) | (signs == -1)).all()):
        raise ValueError("signs are -1 or +1")
    return pack_codes((signs > 0).to(torch.uint8), 1)


def unpack_signs(planes: Tensor, width: int) -> Tensor:
    """Undo ``pack_signs``.

    Args:
        planes: uint8[..., ceil(width / 8)].
        width: Columns; the padding bits after them are dropped unread.

    Returns:
        int8[..., width], only -1 and +1.

    Raises:
        ValueError: If ``width`` needs another number of bytes.
    """
    return unpack_codes(planes, 1, width).to(torch.int8) * 2 - 1
