"""The uncentred second moment of a layer's input."""

import torch
from torch import Tensor

from qdc.numerics.blocks import block_slices
from qdc.numerics.products import linear, product

ROWS = 1024
"""Of a sum, taken at once: nothing else of its size is made but the result."""
TOKENS = 8192
"""Of a batch, multiplied at once: a product takes copies, and a batch may be gigabytes."""


def add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left^T right``, a product in fp32, to a sum in fp64.

    Args:
        total: f64[n, m], changed in place.
        left: f32[tokens, n].
        right: f32[tokens, m].
    """
    for start in range(0, len(total), ROWS):
        rows = slice(start, start + ROWS)
        total[rows] += product(left[:, rows].T, right)


def add_square(total: Tensor, turned: Tensor) -> None:
    """Add ``turned turned^T``, a product in fp32, to a sum in fp64, on and above its diagonal.

    What lies below is not computed: about six tenths of the products suffice.

    Args:
        total: f64[n, n], changed in place; what is below its blocks of the diagonal stays.
        turned: f32[n, tokens], contiguous, so that the parts that are multiplied lie in memory as
            whole rows.
    """
    for rows in diagonal_blocks(len(total)):
        total[rows, rows.start :] += linear(turned[rows], turned[rows.start :])


def mirror(total: Tensor) -> None:
    """Copy what ``add_square`` has summed above the diagonal below it, in place.

    Blocks of the diagonal hold both halves of a product; they become the mean of the two.
    """
    columns = len(total)
    for rows in diagonal_blocks(columns):
        block = total[rows, rows]
        total[rows, rows] = (block + block.T) / 2
        total[rows.stop :, rows] = total[rows, rows.stop :].T


def diagonal_blocks(columns: int) -> tuple[slice, ...]:
    """Where rows are cut: into eight parts, none below 64 and none above ``ROWS``."""
    return block_slices(columns, min(max(64, -(-columns // 8)), ROWS))


def token_parts(count: int) -> tuple[slice, ...]:
    """Where a batch of so many tokens, which may be none, is cut: at every ``TOKENS``."""
    return tuple(slice(start, start + TOKENS) for start in range(0, count, TOKENS))


class MomentAccumulator:
    """Sums x x^T over tokens (quant-dllm.md 1.5, matrix S): fp32 in a batch, fp64 over batches.

    So the order of the batches, and how processes share them, hardly ever changes a bit of the
    result. All tokens weigh the same, masked or visible, unless weights are given. Memory: one
    f64[columns, columns]. A caller on CUDA must leave TF32 matrix products off, which is torch's
    default.
    """

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        """Start at zero tokens.

        Args:
            columns: Input features of the layer.
            device: Where the sum lives; inputs are moved there.

        Raises:
            ValueError: If ``columns`` is below 1.
        """
        if columns < 1:
            raise ValueError(f"a moment needs at least one column, not {columns}")
        self._sum = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self._counts = torch.zeros(2, dtype=torch.float64)

    @property
    def tokens(self) -> int:
        """Tokens added so far."""
        return int(self._counts[0])

    @property
    def weight(self) -> float:
        """Sum of their weights; the number of tokens where none were given."""
        return float(self._counts[1])

    def add(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """Add the tokens of one batch.

        Args:
            inputs: [..., columns], any float dtype, converted to fp32 before the product; every
                leading index is one token.
            weights: [...], one number a token, at least 0: how much its x x^T counts. Each token is
                scaled by the root of its weight, so that the sum stays positive semidefinite.

        Raises:
            ValueError: If the last dimension is not ``columns``, if the weights do not fit, or if
                one of them is negative or not finite.
        """
        columns = self._sum.shape[0]
        if inputs.ndim == 0 or inputs.shape[-1] != columns:
            raise ValueError(f"expected [..., {columns}] inputs, got {tuple(inputs.shape)}")
        rows = inputs.detach().reshape(-1, columns).to(self._sum.device, torch.float32)
        if weights is None:
            shares, weight = None, float(rows.shape[0])
        else:
            if weights.shape != inputs.shape[:-1]:
                raise ValueError(
                    f"expected weights {tuple(inputs.shape[:-1])}, got {tuple(weights.shape)}"
                )
            shares = weights.detach().reshape(-1).to(rows.device, torch.float32)
            if not bool(((shares >= 0) & shares.isfinite()).all()):
                raise ValueError("a weight is negative or not finite")
            weight = shares.double().sum().item()
        for part in token_parts(len(rows)):
            turned = rows[part].T.clone(memory_format=torch.contiguous_format)
            if shares is not None:
                turned *= shares[part].sqrt()
            add_square(self._sum, turned)
        self._counts += torch.tensor([rows.shape[0], weight], dtype=torch.float64)

    def sums(self) -> list[Tensor]:
        """All that was added up, the tensors themselves: ``f64[columns, columns]`` and counts."""
        return [self._sum, self._counts]

    def value(self) -> Tensor:
        """Average over the tokens, each with its weight.

        Returns:
            f32[columns, columns], a fresh tensor in input^2, exactly symmetric.

        Raises:
            ValueError: If no token was added, or none of a weight above 0.
        """
        if self.tokens == 0 or self.weight == 0:
            raise ValueError("the moment of zero tokens is undefined")
        mirror(self._sum)
        value = torch.empty_like(self._sum, dtype=torch.float32)
        for rows in block_slices(len(value), ROWS):
            value[rows] = self._sum[rows] / self.weight
        return value

    def clear(self) -> None:
        """Give the memory of the sum back; the counts stay."""
        self._sum = self._sum.new_empty(0)
