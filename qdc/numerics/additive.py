"""Vectors of weights as sums of codebook entries: W = s_r (C_1[k_1] + ... + C_M[k_M]).

One set of codebooks for a layer, M codes for each vector of adjoining columns of a row, one scale a
row. Here is what start (``additive_start``), search over the codes (``additive_search``) and
codebook update (``additive_update``) share: the form itself, its padded problem, its exact cost.
Source: AQLM, arXiv 2401.06118; related-systems.md 8.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad


class Additive(NamedTuple):
    """One layer as codes, codebooks and row scales.

    Attributes:
        codes: i64[n, M, G], entry of each codebook for each vector.
        codebook: f32[M, K, g], multiples of fp16 numbers once it is final.
        scale: f32[n], not negative; likewise.
    """

    codes: Tensor
    codebook: Tensor
    scale: Tensor

    def stored(self) -> Self:
        """Codebooks and scales rounded to fp16. Raises ``OverflowError``."""
        codebook, scale = self.codebook.half(), self.scale.half()
        if not bool(codebook.isfinite().all() & scale.isfinite().all()):
            raise OverflowError("a codebook or row scale is not finite in fp16")
        return self._replace(codebook=codebook.float(), scale=scale.float())

    def sums(self) -> Tensor:
        """Sum of the entries of each vector without its scale, in codebook order: f32[n, G, g]."""
        total = entries(self.codebook[0], self.codes[:, 0])
        for table, codes in zip(self.codebook[1:], self.codes.unbind(1)[1:], strict=True):
            total = total + entries(table, codes)
        return total

    def dense(self) -> Tensor:
        """f32[n, G * g]: each sum times its row scale, as ``docs/format.md`` says it."""
        return (self.sums() * self.scale[:, None, None]).flatten(1)


class Problem(NamedTuple):
    """What is to be met, its columns padded to whole vectors by weights and inputs of 0.

    Attributes:
        target: f32[n, G * g].
        moment: f32[G * g, G * g], symmetric: an error E costs tr(E moment E^T).
    """

    target: Tensor
    moment: Tensor

    @classmethod
    def padded(cls, target: Tensor, moment: Tensor, group: int) -> Self:
        """Pad f32[n, m] and f32[m, m] to vectors of ``group`` columns.

        The moment is divided by its mean diagonal, so that nothing depends on the inputs' unit.
        """
        extra = -target.shape[1] % group
        size = float(moment.diagonal().mean(dtype=torch.float64))
        moment = moment / (size if size > 0 else 1.0)
        return cls(pad(target, (0, extra)), pad(moment, (0, extra, 0, extra)))

    def row_costs(self, dense: Tensor) -> Tensor:
        """What each row costs, e moment e^T of its error e, f64[n]; products in fp64."""
        error = self.target.to(torch.float64) - dense
        return ((error @ self.moment.to(torch.float64)) * error).sum(1)

    def cost(self, state: Additive) -> float:
        """tr(E moment E^T) of a state."""
        return float(self.row_costs(state.dense()).sum())


def entries(table: Tensor, codes: Tensor) -> Tensor:
    """Look codes up: f32[K, g] and i64[...] to f32[..., g]."""
    return torch.nn.functional.embedding(codes, table)


def sums_by_code(values: Tensor, codes: Tensor, count: int) -> Tensor:
    """Add up the vectors that have one code, the transpose of ``entries``.

    ``index_add_`` adds in random order on CUDA, where the derivative of an embedding sorts first.

    Args:
        values: f32[..., g].
        codes: i64[...], each below ``count``.
        count: Entries of the codebook.

    Returns:
        f32[count, g].
    """
    rows, flat = values.reshape(-1, values.shape[-1]), codes.reshape(-1)
    if rows.device.type == "cpu":
        return rows.new_zeros(count, rows.shape[1]).index_add_(0, flat, rows)
    found: Tensor = torch.ops.aten.embedding_dense_backward(rows, flat, count, -1, False)
    return found


def diagonal_blocks(moment: Tensor, group: int) -> Tensor:
    """The blocks of a moment that couple the columns of one vector, f32[G, g, g]."""
    count = len(moment) // group
    blocks = moment.reshape(count, group, count, group).diagonal(dim1=0, dim2=2)
    return blocks.permute(2, 0, 1).contiguous()
