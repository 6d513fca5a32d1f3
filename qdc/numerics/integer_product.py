"""Products of matrices of whole numbers of 8 bits, added up exactly in 32 bits."""

from functools import cache
from typing import Final

import torch
from torch import Tensor

LONGEST: Final = 1 << 16
"""Columns that a product may have: 2^16 products of at most 2^14 stay below 2^31."""
MULTIPLE, FEWEST_ROWS = 8, 32
"""What the product on CUDA asks of its sizes, and that on CPUs of short rows."""


def integer_product(codes: Tensor, weights: Tensor) -> Tensor:
    """Multiply codes by the transpose of weights, exactly.

    On processors whose instructions for it would round (sums of two products kept in 16 bits), and
    on devices that have no such product, matrices of i32 are multiplied instead.

    Args:
        codes: i8[m, k].
        weights: i8[n, k].

    Returns:
        i32[m, n].

    Raises:
        ValueError: if dtypes or sizes are others, or a sum might not fit 32 bits.
    """
    if codes.dtype != torch.int8 or weights.dtype != torch.int8:
        raise ValueError(f"codes are int8, not {codes.dtype} and {weights.dtype}")
    (m, k), (n, other) = codes.shape, weights.shape
    if k != other or k > LONGEST:
        raise ValueError(f"{k} and {other} columns: they are equal, and at most {LONGEST}")
    if not (m and n and k):
        return torch.zeros(m, n, dtype=torch.int32, device=codes.device)
    if not _exact(codes.device):
        return codes.to(torch.int32) @ weights.to(torch.int32).T
    # On CPUs torch 2.13 multiplies matrices of one column wrongly, as if they were not contiguous.
    if codes.device.type == "cuda" or k < MULTIPLE:
        return _filled_up(codes, weights)[:m, :n]
    return torch._int_mm(codes, weights.T)


@cache
def _exact(device: torch.device) -> bool:
    """Whether the device multiplies whole numbers of 8 bits without saturating or refusing."""
    try:
        low = torch.full((FEWEST_ROWS, 64), -128, dtype=torch.int8, device=device)
        high = torch.full((FEWEST_ROWS, 64), 127, dtype=torch.int8, device=device)
        found = (torch._int_mm(a, b.T) for a, b in ((low, low), (high, high), (low, high)))
        wanted = (64 * 128 * 128, 64 * 127 * 127, -64 * 128 * 127)
        return all(bool((f == w).all()) for f, w in zip(found, wanted, strict=True))
    except (RuntimeError, NotImplementedError):
        return False


def _filled_up(codes: Tensor, weights: Tensor) -> Tensor:
    """The product with zeros added, so that sizes are such as CUDA takes."""
    (m, k), n = codes.shape, len(weights)
    across = -k % MULTIPLE
    down = FEWEST_ROWS - m if m < FEWEST_ROWS else -m % MULTIPLE
    codes = torch.nn.functional.pad(codes, (0, across, 0, down))
    weights = torch.nn.functional.pad(weights, (0, across, 0, -n % MULTIPLE))
    return torch._int_mm(codes, weights.T)
