"""Random rotations that cost n log n: random signs, then a normalised Hadamard transform.

A width that is no power of two is cut into equal blocks of the largest power of two that divides
it, so that nothing but the width and a seed says which rotation it is. Source: related-systems.md
14 (QuIP#, arXiv 2402.04396) and 1 (SDQ-LLM, arXiv 2510.03275).
"""

import math
from typing import Any, Final, NamedTuple, Self

import torch
from torch import Tensor

from qdc.numerics.products import is_transformed, undisturbed
from qdc.numerics.random_numbers import below, uniforms

TOGETHER: Final = 1 << 18
"""Numbers transformed at once on a CPU, so that they stay in its cache."""
SEEDS = 1 << 31
"""Seeds lie in [0, 2^31), so that one takes 32 bits with a sign."""


def random_seed(*key: str | int) -> int:
    """Draw the seed of a rotation by a name, in [0, 2^31)."""
    return below(SEEDS, 1, "rotation seed", *key)[0]


def random_signs(width: int, seed: int) -> Tensor:
    """Draw f32[width], each -1 or +1; a wider draw begins with a narrower one of the same seed."""
    return torch.where(uniforms(width, "rotation signs", seed) < 0.5, -1.0, 1.0)


def transform_size(width: int) -> int:
    """Find the largest power of two that divides ``width``.

    Raises:
        ValueError: If ``width`` is below 1.
    """
    if width < 1:
        raise ValueError(f"a rotation has at least one column, not {width}")
    return width & -width


def walsh_hadamard(values: Tensor, size: int) -> Tensor:
    """Multiply each run of ``size`` columns by the Hadamard matrix of +1 and -1, unnormalised.

    Sylvester's order: the matrix of 2 n is [[H, H], [H, -H]] with H the one of n. Pairs one column
    apart are added and subtracted first, then pairs two, four, ... apart, so the order of the
    additions, and with it every rounding, is part of the definition.

    Args:
        values: [..., width], floating point, not modified.
        size: A power of two that divides the width.

    Returns:
        [..., width], in the same dtype.

    Raises:
        ValueError: If ``size`` is another number.
    """
    if size < 1 or size & (size - 1) or values.shape[-1] % size:
        raise ValueError(f"{size} is no power of two that divides {values.shape[-1]} columns")
    if values.device.type != "cpu" or torch.compiler.is_compiling() or is_transformed():
        return _step_by_step(values, size)
    if torch.is_grad_enabled() and values.requires_grad:
        found: Tensor = _Differentiable.apply(values, size)  # type: ignore[no-untyped-call]
        return found
    with undisturbed():
        return _by_columns(values, size)


def _step_by_step(values: Tensor, size: int) -> Tensor:
    current, step = values.contiguous(), 1
    while step < size:
        pairs = current.view(-1, 2, step)
        first, second = pairs[:, 0], pairs[:, 1]
        current = torch.stack((first + second, first - second), dim=1).view(values.shape)
        step *= 2
    return current


def _by_columns(values: Tensor, size: int) -> Tensor:
    """The same sums, of columns that lie in memory as rows: a processor adds many at once."""
    rows = values.reshape(-1, values.shape[-1])
    result, many = torch.empty_like(rows), max(1, TOGETHER // rows.shape[1])
    for start in range(0, len(rows), many):
        part = slice(start, start + many)
        current = rows[part].T.clone(memory_format=torch.contiguous_format)
        other, step = torch.empty_like(current), current.shape[1]
        while step < size * current.shape[1]:
            pairs, sums = current.view(-1, 2, step), other.view(-1, 2, step)
            torch.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
            torch.sub(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
            current, other, step = other, current, 2 * step
        result[part] = current.T
    return result.view(values.shape)


class _Differentiable(torch.autograd.Function):
    """The transform is its own transpose."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, size: int) -> Tensor:
        ctx.size = size
        return _by_columns(values, size)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return walsh_hadamard(slope, ctx.size), None


class RandomHadamard(NamedTuple):
    """An orthogonal matrix Q = diag(signs) H / sqrt(size), H block-diagonal, on row vectors.

    Attributes:
        signs: f32[width], each -1 or +1.
        size: Columns of a block of H, a power of two.
    """

    signs: Tensor
    size: int

    @classmethod
    def of(cls, width: int, seed: int, device: torch.device | str = "cpu") -> Self:
        """Make the rotation of ``width`` columns that a seed names."""
        return cls(random_signs(width, seed).to(device), transform_size(width))

    def forward(self, values: Tensor) -> Tensor:
        """Compute X Q for X of [..., width], in its dtype, fp32 or fp64."""
        return walsh_hadamard(values * self.signs, self.size) * (1 / math.sqrt(self.size))

    def inverse(self, values: Tensor) -> Tensor:
        """Compute X Q^T: undo ``forward``, exactly but for rounding."""
        return walsh_hadamard(values, self.size) * (1 / math.sqrt(self.size)) * self.signs
