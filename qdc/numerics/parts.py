"""The levels of one part of a block, each linear in a few numbers of a row.

``partitiongrid`` combines them. Source: related-systems.md B5, B6.
"""

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from qdc.numerics.components import Components
from qdc.numerics.nearest import nearest_levels
from qdc.numerics.partbinary import PartFit
from qdc.numerics.rounding import nearest_signs
from qdc.numerics.uniform import round_to_grid


class Part(ABC):
    """The levels of one part of a block, linear in ``parameters``."""

    parameters: Tensor
    """f32[K, n], rounded to what is stored."""

    @abstractmethod
    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round f32[n] to the levels of a column, as ``Grid.nearest`` does."""

    @abstractmethod
    def basis(self, dense: Tensor) -> Tensor:
        """What parameters multiply at the codes nearest to ``dense`` f32[n, g]: f32[K, n, g]."""

    @abstractmethod
    def write(self, basis: Tensor) -> Tensor:
        """The levels f32[n, g] of a basis, exactly as the codec's ``dense`` writes them."""

    @abstractmethod
    def with_parameters(self, parameters: Tensor) -> Self:
        """The part with other parameters f32[K, n], which are rounded. Raises ``OverflowError``."""


class BinaryPart(Part):
    """mean + sum over k of +-row_scale_k col_scale_k, with means or with column scales."""

    def __init__(self, fit: PartFit, *, has_mean: bool) -> None:
        """Round a fit to fp16. Raises ``OverflowError``; the signs of the fit are not read."""
        scales = fit.components
        self.has_mean = has_mean
        self.mean = rounded(fit.mean)
        self.row_scale, self.col_scale = rounded(scales.row_scale), rounded(scales.col_scale)
        parameters = self.row_scale
        self.parameters = torch.cat([self.mean[None], parameters]) if has_mean else parameters

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round one column to its two or four levels."""
        first, *second = self.row_scale * self.col_scale[:, column, None]
        if not second:
            plus, minus = first + self.mean, self.mean - first
            return torch.where((target - self.mean) * first >= 0, plus, minus)
        total, other = first + second[0], first - second[0]
        levels = torch.stack((total, other, -other, -total)) + self.mean
        return nearest_levels(levels, target)

    def signs(self, dense: Tensor) -> Tensor:
        """Signs of the levels nearest to ``dense``, f32[K, n, g]."""
        centred = (dense - self.mean[:, None])[:, None]
        return nearest_signs(centred, self.row_scale[:, :, None], self.col_scale[:, None])[:, :, 0]

    def basis(self, dense: Tensor) -> Tensor:
        """Ones for the mean; signs times column scales."""
        return self.basis_of(self.signs(dense))

    def basis_of(self, signs: Tensor) -> Tensor:
        """The basis at given signs, [K, n, g]."""
        scaled = signs * self.col_scale[:, None]
        return torch.cat([torch.ones_like(scaled[:1]), scaled]) if self.has_mean else scaled

    def write(self, basis: Tensor) -> Tensor:
        """Components in ascending order, then the mean."""
        terms = self.row_scale[:, :, None] * (basis[1:] if self.has_mean else basis)
        total: Tensor = terms[0]
        for term in terms[1:]:
            total = total + term
        return total + self.mean[:, None] if self.has_mean else total

    def with_parameters(self, parameters: Tensor) -> Self:
        """Other means and row scales."""
        mean, scales = (parameters[0], parameters[1:]) if self.has_mean else (self.mean, parameters)
        return self._like(mean, scales, self.col_scale)

    def with_columns(self, columns: Tensor) -> Self:
        """Other column scales f32[K, g], brought to a mean magnitude of 1 where they are not 0."""
        live = columns != 0
        mean = columns.abs().sum(1) / live.sum(1).clamp(min=1)
        unit = torch.where(mean > 0, mean, 1.0)
        return self._like(self.mean, self.row_scale * unit[:, None], columns / unit[:, None])

    def _like(self, mean: Tensor, rows: Tensor, columns: Tensor) -> Self:
        signs = torch.empty(0, dtype=torch.int8, device=rows.device)
        fit = PartFit(mean, Components(signs, rows, columns))
        return type(self)(fit, has_mean=self.has_mean)


class UniformPart(Part):
    """step * code + minimum, codes of a fixed number of bits."""

    def __init__(self, step: Tensor, minimum: Tensor, bits: int) -> None:
        """Round f32[n] each to fp16; a step below 0 counts as 0. Raises ``OverflowError``."""
        self.step, self.minimum, self.bits = rounded(step).clamp(min=0), rounded(minimum), bits
        self.parameters = torch.stack([self.minimum, self.step])

    @classmethod
    def fit(cls, block: Tensor, mask: Tensor | None, bits: int) -> Self:
        """Span from the least to the largest of each row's elements that a mask marks, or of all.

        A row without one gets a grid at 0.
        """
        low, high = block, block
        if mask is not None:
            low, high = (block.masked_fill(~mask, end) for end in (torch.inf, -torch.inf))
        least, most = low.amin(1), high.amax(1)
        least, most = (torch.where(least <= most, end, 0.0) for end in (least, most))
        return cls((most - least) / (2**bits - 1), least, bits)

    def codes(self, dense: Tensor) -> Tensor:
        """Codes f32[n, g] of the levels nearest to ``dense``."""
        return round_to_grid(dense, self.step, self.minimum, self.bits)

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round one column to the grid of its row."""
        return self.step * self.codes(target) + self.minimum

    def basis(self, dense: Tensor) -> Tensor:
        """Ones for the minimum; the codes."""
        codes = self.codes(dense)
        return torch.stack([torch.ones_like(codes), codes])

    def write(self, basis: Tensor) -> Tensor:
        """Product exact, sum rounded once."""
        return self.step[:, None] * basis[1] + self.minimum[:, None]

    def with_parameters(self, parameters: Tensor) -> Self:
        """Another minimum and step."""
        return type(self)(parameters[1], parameters[0], self.bits)


def rounded(scales: Tensor) -> Tensor:
    """Round to fp16, in f32. Raises ``OverflowError`` where that is not finite."""
    half = scales.half().float()
    if not bool(half.isfinite().all()):
        raise OverflowError("a scale or mean of the block is not finite in fp16")
    return half
