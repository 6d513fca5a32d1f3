"""The uncentred second moment of a layer's input."""

import torch
from torch import Tensor


class MomentAccumulator:
    """Sums x x^T over tokens in fp32 (quant-dllm.md 1.5, matrix S).

    All tokens weigh the same, masked or visible. Memory: one f32[columns, columns]. A caller on
    CUDA must leave TF32 matrix products off, which is the default of torch.
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
        self._sum = torch.zeros(columns, columns, dtype=torch.float32, device=device)
        self._tokens = 0

    @property
    def tokens(self) -> int:
        """Tokens added so far."""
        return self._tokens

    def add(self, inputs: Tensor) -> None:
        """Add the tokens of one batch.

        Args:
            inputs: [..., columns], any float dtype, converted to fp32 before the product; every
                leading index is one token.

        Raises:
            ValueError: If the last dimension is not ``columns``.
        """
        columns = self._sum.shape[0]
        if inputs.ndim == 0 or inputs.shape[-1] != columns:
            raise ValueError(f"expected [..., {columns}] inputs, got {tuple(inputs.shape)}")
        rows = inputs.detach().reshape(-1, columns).to(self._sum.device, torch.float32)
        self._sum.addmm_(rows.T, rows)
        self._tokens += rows.shape[0]

    def value(self) -> Tensor:
        """Average over the tokens.

        Returns:
            f32[columns, columns], a fresh tensor in input^2, exactly symmetric: entries are the
            mean of the two mirrored sums.

        Raises:
            ValueError: If no token was added.
        """
        if self._tokens == 0:
            raise ValueError("the moment of zero tokens is undefined")
        return (self._sum + self._sum.T) / (2 * self._tokens)
