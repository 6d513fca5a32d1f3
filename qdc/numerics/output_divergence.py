"""How far the outputs of a layer move when some of its column groups get other bits.

The oracle of SliM-LLM's bit allocation (related-systems.md 6): KL(softmax(X Q^T), softmax(X W^T))
of each token, for every number of groups moved. From one number to the next two groups change, so
the outputs change by two products of the groups' width.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from qdc.numerics.components import dense
from qdc.numerics.multibinary import fit
from qdc.numerics.zeropoint import ZeroPointGrid

SWEEPS, TOLERANCE = 15, 1e-4
"""Of a binary fit: as measure-orders has them."""


class WrittenOut(NamedTuple):
    """A weight written out in three ways, each f32[n, m]."""

    less: Tensor
    """With one bit less than the base."""
    base: Tensor
    more: Tensor
    """With one bit more."""


def write_out(
    weight: Tensor, slices: Sequence[slice], base: int, *, binary: bool = False
) -> WrittenOut:
    """Write each group of a weight out at the base and at its neighbours.

    Args:
        weight: f32[n, m].
        slices: Columns of the groups.
        base: Bits of a weight, 2 or more.
        binary: Whether by so many fitted binary components, or else by rounding to nearest: on the
            grid from minimum to maximum, or for one bit on mean - s and mean + s, s = mean |w|.

    Raises:
        OverflowError: If a scale is not finite in fp16.
    """
    forms = []
    for bits in (base - 1, base, base + 1):
        parts = [_group(weight[:, part].contiguous(), bits, binary) for part in slices]
        forms.append(torch.cat(parts, dim=1))
    return WrittenOut(*forms)


def _group(block: Tensor, bits: int, binary: bool) -> Tensor:
    if binary:
        return dense(fit(block, bits, torch.ones_like(block), SWEEPS, TOLERANCE)[0])
    low, high = block.amin(dim=1), block.amax(dim=1)
    if bits == 1:
        mean, size = block.mean(dim=1), block.abs().mean(dim=1)
        low, high = mean - size, mean + size
    return ZeroPointGrid.spanning(low, high, bits).round(block)


class DivergenceAccumulator:
    """Sums the divergence of every count over tokens, fp32 for a token, fp64 over them."""

    OUTPUTS: ClassVar[int] = 1 << 22
    """Outputs computed at a time: tokens of a batch are split to it."""

    def __init__(
        self,
        weight: Tensor,
        written: WrittenOut,
        slices: Sequence[slice],
        ranking: Sequence[int],
        counts: range,
    ) -> None:
        """Start at zero tokens.

        Args:
            weight: f32[n, m], the original.
            written: Three forms of it.
            slices: Columns of the groups.
            ranking: Groups that may move, from the least to the most salient.
            counts: Groups moved each way, ascending from 0 or 1 in steps of 1.

        Raises:
            ValueError: If there is no count, or more groups would move than there are.
        """
        if not counts or 2 * counts[-1] > len(ranking) or counts[0] not in (0, 1):
            raise ValueError(f"counts {counts} do not suit {len(ranking)} groups")
        self.weight, self.written, self.counts = weight, written, counts
        self.moves = [
            (slices[ranking[turn]], slices[ranking[-1 - turn]]) for turn in range(counts[-1])
        ]
        self._sum = torch.zeros(len(counts), dtype=torch.float64, device=weight.device)
        self._weights = torch.zeros(1, dtype=torch.float64, device=weight.device)

    @classmethod
    def scratch(cls, tokens: int, rows: int) -> int:
        """Bytes that ``add`` takes for a moment: five forms of the outputs computed at a time."""
        return 5 * 4 * min(tokens * rows, max(cls.OUTPUTS, rows))

    def add(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """Add the tokens of one batch.

        Args:
            inputs: [..., m], converted to fp32; every leading index is one token.
            weights: [...], what each token counts; all the same if not given.
        """
        tokens = inputs.reshape(-1, self.weight.shape[1]).to(self.weight.device, torch.float32)
        shares = torch.ones(len(tokens)) if weights is None else weights.reshape(-1)
        shares = shares.to(self._sum)
        many = max(1, self.OUTPUTS // len(self.weight))
        for part, counted in zip(torch.split(tokens, many), torch.split(shares, many), strict=True):
            self._add(part, counted)
        self._weights += shares.sum()

    def _add(self, tokens: Tensor, shares: Tensor) -> None:
        wanted = (tokens @ self.weight.T).log_softmax(-1)
        outputs = tokens @ self.written.base.T
        for count in range(self.counts[-1] + 1):
            if count:
                least, most = self.moves[count - 1]
                for part, other in ((least, self.written.less), (most, self.written.more)):
                    change = other[:, part] - self.written.base[:, part]
                    outputs.addmm_(tokens[:, part], change.T)
            if count in self.counts:
                found = outputs.log_softmax(-1)
                rise = (found.exp() * (found - wanted)).sum(-1, dtype=torch.float64)
                self._sum[count - self.counts[0]] += rise @ shares

    def sums(self) -> list[Tensor]:
        """All that was added up, the tensors themselves: f64[counts] and the tokens' weight."""
        return [self._sum, self._weights]

    def value(self) -> Tensor:
        """Mean divergence of each count, f64[counts], in nats, not negative.

        Raises:
            ValueError: If no token was added.
        """
        if not float(self._weights) > 0:
            raise ValueError("the divergence of zero tokens is undefined")
        return (self._sum / self._weights).clamp(min=0)
