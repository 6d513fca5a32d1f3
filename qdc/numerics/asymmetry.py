"""What the quantized stream has lost against the original one, for a layer to take back.

Source: GPTAQ (arXiv 2504.02692): a layer on quantized inputs X is to give what the original layer
gives on the original inputs X0. The minimiser of |W X0 - Q X|^2 over Q is W + W D inv(M), with
M = X X^T and D = (X0 - X) X^T; GPTAQ keeps the part of it that acts on columns not yet rounded.
"""

import torch
from torch import Tensor

from qdc.numerics.moment import ROWS, add_products, token_parts
from qdc.numerics.products import product


class CrossMomentAccumulator:
    """Sums (x0 - x) x^T over tokens, f64[columns, columns], not symmetric.

    In fp32 in a batch, in fp64 over batches, as the moment.
    """

    def __init__(
        self, columns: int, device: torch.device | str = "cpu", *, rows: int | None = None
    ) -> None:
        """Start at zero tokens.

        Args:
            columns: Input features of the layer.
            device: Where the sum lives.
            rows: Output features, where what the residual stream has lost is summed too.
        """
        self._sum = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self._residual = None
        if rows is not None:
            self._residual = torch.zeros(rows, columns, dtype=torch.float64, device=device)
        self._shares = torch.zeros(3, dtype=torch.float64)
        """Of |x0 - x|^2, of |x0|^2, and of the tokens' weights."""

    def add(self, inputs: Tensor, reference: Tensor, weights: Tensor | None = None) -> None:
        """Add the tokens of one batch.

        Args:
            inputs: [..., columns], x: of the quantized stream.
            reference: [..., columns], x0: of the original one, the same tokens.
            weights: [...], what each token counts; 1 if not given.

        Raises:
            ValueError: If the shapes differ.
        """
        if inputs.shape != reference.shape or inputs.shape[-1] != len(self._sum):
            raise ValueError(
                f"inputs {tuple(inputs.shape)} and reference {tuple(reference.shape)} do not fit "
                f"{len(self._sum)} columns"
            )
        device = self._sum.device
        rows, first = (
            t.detach().reshape(-1, t.shape[-1]).to(device, torch.float32)
            for t in (inputs, reference)
        )
        shares = None if weights is None else weights.detach().reshape(-1).to(device, torch.float32)
        for part in token_parts(len(rows)):
            change = first[part] - rows[part]
            energies = torch.ones(3, len(change), dtype=torch.float64, device=device)
            energies[0], energies[1] = _energy(change), _energy(first[part])
            if shares is not None:
                change *= shares[part, None]
                energies *= shares[part]
            add_products(self._sum, change, rows[part])
            self._shares += energies.sum(1).cpu()

    def value(self) -> Tensor:
        """Mean over the tokens, f32[columns, columns]. Raises ``ValueError`` without any."""
        if self.weight == 0:
            raise ValueError("the cross moment of zero tokens is undefined")
        return _mean(self._sum, self.weight)

    def add_residual(
        self, inputs: Tensor, now: Tensor, before: Tensor, weights: Tensor | None = None
    ) -> None:
        """Add the tokens of one batch to the sum of (h0 - h) x^T.

        Args:
            inputs: [..., columns], x.
            now: [..., rows], h.
            before: [..., rows], h0.
            weights: [...], what each token counts; 1 if not given.

        Raises:
            ValueError: If no residual is summed.
        """
        if self._residual is None:
            raise ValueError("the accumulator was made without rows")
        device = self._sum.device
        rows, h, h0 = (
            t.detach().reshape(-1, t.shape[-1]).to(device, torch.float32)
            for t in (inputs, now, before)
        )
        shares = None if weights is None else weights.detach().reshape(-1).to(device, torch.float32)
        for part in token_parts(len(rows)):
            change = h0[part] - h[part]
            if shares is not None:
                change *= shares[part, None]
            add_products(self._residual, change, rows[part])

    def residual(self) -> Tensor | None:
        """Mean of (h0 - h) x^T, f32[rows, columns], or None if none is summed."""
        return None if self._residual is None else _mean(self._residual, self.weight)

    def sums(self) -> list[Tensor]:
        """All that was added up, the tensors themselves."""
        residual = [] if self._residual is None else [self._residual]
        return [self._sum, *residual, self._shares]

    def clear(self) -> None:
        """Give the memory of the sums back; the shares stay."""
        self._sum, self._residual = self._sum.new_empty(0), None

    @property
    def weight(self) -> float:
        """Sum of the tokens' weights."""
        return float(self._shares[2])

    @property
    def drift(self) -> float:
        """Mean of |x0 - x|^2 as a share of that of |x0|^2; 0 where all x0 are 0."""
        drift, energy, _ = self._shares.tolist()
        return float(drift / energy) if energy > 0 else 0.0


def _energy(rows: Tensor) -> Tensor:
    """Squared length of each row, f64[tokens], from its length in f32."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths.double().square()


def _mean(total: Tensor, weight: float) -> Tensor:
    """A sum over tokens as their mean in fp32, by rows: nothing else of its size is made."""
    value = torch.empty_like(total, dtype=torch.float32)
    for start in range(0, len(value), ROWS):
        value[start : start + ROWS] = total[start : start + ROWS] / weight
    return value


def asymmetry_term(cross: Tensor, upper: Tensor, share: float) -> Tensor:
    """GPTAQ's matrix P: what a column hands on to those to its right.

    Args:
        cross: f32[m, m], D, normalised as the moment is.
        upper: f32[m, m], U with inverse moment U^T U.
        share: The term is multiplied by this: 1 as derived, 0.25 in the published scripts.

    Returns:
        f32[m, m], share * triu(D U^T) U, triu without the diagonal: strictly upper triangular.
    """
    return share * product(product(cross, upper.T).triu_(1), upper).triu_(1)


def drifted_target(
    weight: Tensor, cross: Tensor, upper: Tensor, share: float, residual: Tensor | None = None
) -> Tensor:
    """The whole minimiser: what a layer on drifted inputs should hold before it is rounded.

    At share 1 it minimises |H0 + W X0 - H - Q X|^2 + damping |Q - W|^2 over all Q; feedback and
    compensation then start from it, in the same metric. Unlike ``asymmetry_term`` it also counts
    what a column could only hand to columns on its left, and, where the output is added to the
    residual stream H, takes back what that has lost.

    Args:
        weight: f32[n, m], W.
        cross: f32[m, m], D, normalised as the moment is.
        upper: f32[m, m], U with inverse damped moment U^T U.
        share: The change is multiplied by this.
        residual: f32[n, m], R = (H0 - H) X^T, normalised as the moment is; 0 if not given.

    Returns:
        f32[n, m], W + share * (W D + R) U^T U.
    """
    lost = product(weight, cross)
    if residual is not None:
        lost = lost + residual
    return weight + share * product(product(lost, upper.T), upper)
