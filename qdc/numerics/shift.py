"""How far the activations of one kind of token are from those of another.

Reviewers of Quant-dLLM asked for this evidence: what masked states do to the inputs of each layer.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from qdc.numerics.moment import MomentAccumulator

EXACT = 1024
"""Up to this many columns all eigenvectors are computed; beyond, the leading ones alone."""
FLOOR = 1e-6
"""Smallest variance of a channel, as a share of the reference's: equal tokens have none."""


class Statistics(NamedTuple):
    """Of tokens: ``f32[columns, columns]`` mean of x x^T, ``f64[columns]`` mean, their number."""

    moment: Tensor
    mean: Tensor
    tokens: int

    @property
    def variance(self) -> Tensor:
        """Of each channel, ``f64[columns]``."""
        return (self.moment.diagonal().double() - self.mean.square()).clamp(min=0)


class StatisticsAccumulator:
    """Sums up tokens, batch by batch. Memory: one f32[columns, columns]."""

    def __init__(self, columns: int, device: torch.device | str = "cpu") -> None:
        """Start at zero tokens."""
        self._moment = MomentAccumulator(columns, device)
        self._sum = torch.zeros(columns, dtype=torch.float64, device=device)

    def add(self, inputs: Tensor) -> None:
        """Add tokens ``[..., columns]``."""
        self._moment.add(inputs)
        rows = inputs.detach().reshape(-1, len(self._sum)).to(self._sum.device)
        self._sum += rows.double().sum(0)

    def value(self) -> Statistics | None:
        """Statistics of the tokens so far; None without any."""
        tokens = self._moment.tokens
        return Statistics(self._moment.value(), self._sum / tokens, tokens) if tokens else None


class Shift(NamedTuple):
    """How some tokens differ from reference tokens."""

    trace: float
    """Log of the ratio of the traces: energy; 0 if equal, positive if it has grown."""
    overlap: float
    """Of the leading eigenspaces: 1 if they are the same, top/columns if unrelated."""
    distance: float
    """Frobenius norm of the difference of the moments, relative to the reference."""
    divergence: float
    """Median over the channels of the divergence, in nats; see ``divergences``."""
    divergence_high: float
    """Its 95th percentile."""


def together(parts: list[Statistics]) -> Statistics:
    """Statistics of the tokens of several parts, at least one."""
    tokens = sum(part.tokens for part in parts)
    moment = sum((p.moment * (p.tokens / tokens) for p in parts), torch.zeros(()))
    mean = sum((p.mean * (p.tokens / tokens) for p in parts), torch.zeros(()))
    return Statistics(moment, mean, tokens)


def shift(found: Statistics, reference: Statistics, basis: Tensor) -> Shift | None:
    """Compare tokens with a reference whose leading eigenvectors are ``basis``, f[columns, top].

    None if the reference is zero throughout.
    """
    size = torch.linalg.matrix_norm(reference.moment)
    energy = found.moment.diagonal().double().sum(), reference.moment.diagonal().double().sum()
    if not size or not energy[0]:
        return None
    channels = divergences(found, reference)
    return Shift(
        trace=(energy[0] / energy[1]).log().item(),
        overlap=eigenspace_overlap(leading_eigenvectors(found.moment, basis.shape[1]), basis),
        distance=(torch.linalg.matrix_norm(found.moment - reference.moment) / size).item(),
        divergence=channels.quantile(0.5).item(),
        divergence_high=channels.quantile(0.95).item(),
    )


def divergences(found: Statistics, reference: Statistics) -> Tensor:
    """Kullback-Leibler divergence of each channel from the reference, as Gaussians, f64[alive].

    ``1/2 (ln(v_r / v) + (v + (m - m_r)^2) / v_r - 1)`` with means m and variances v: the closed
    form for normal distributions (Kullback, Information Theory and Statistics, 1959). A variance
    counts as at least ``FLOOR`` of the reference's; channels that are constant in the reference are
    left out, and a reference without any other gives one zero.
    """
    spread = reference.variance
    alive = spread > FLOOR * spread.mean()
    if not bool(alive.any()):
        return torch.zeros(1, dtype=torch.float64)
    ratio = (found.variance[alive] / spread[alive]).clamp(min=FLOOR)
    moved = (found.mean - reference.mean)[alive].square() / spread[alive]
    nats: Tensor = (ratio - 1 - ratio.log() + moved) / 2
    return nats


def leading_eigenvectors(moment: Tensor, top: int) -> Tensor:
    """Orthonormal eigenvectors of the ``top`` largest eigenvalues, f32[columns, top]."""
    columns = len(moment)
    if columns <= max(EXACT, 3 * top):
        vectors: Tensor = torch.linalg.eigh(moment).eigenvectors[:, -top:]
        return vectors
    start = torch.randn(columns, top, generator=torch.Generator().manual_seed(0))
    found: Tensor = torch.lobpcg(moment, X=start.to(moment), niter=200, largest=True)[1]
    return found


def eigenspace_overlap(one: Tensor, other: Tensor) -> float:
    """``||V^T U||_F^2 / top`` of two orthonormal bases f[columns, top], in 0..1.

    The mean squared cosine of the principal angles (Krzanowski, Between-groups comparison of
    principal components, 1979).
    """
    return (one.double().T @ other.double()).square().sum().item() / one.shape[1]
