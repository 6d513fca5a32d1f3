"""Move codebooks and row scales with the codes fixed, to less output error.

``adam`` takes the steps that AQLM publishes. ``solve`` is ours: for fixed codes and scales the cost
is quadratic in the codebooks, so preconditioned conjugate gradients go to its minimum; the scales
follow in closed form. Source: AQLM (arXiv 2401.06118), related-systems.md 8.
"""

from typing import Literal

import torch
from torch import Tensor

from qdc.numerics.adam import Adam
from qdc.numerics.additive import Additive, Problem, diagonal_blocks, sums_by_code
from qdc.numerics.additive_start import entry_metrics, with_ridge

Update = Literal["adam", "solve"]
BETAS = (0.0, 0.95)
"""Adam's averages, as published."""
CONVERGED = 1e-5
"""Share of the first gradient, in the preconditioner's norm, at which a solve is done."""


def updated(problem: Problem, state: Additive, update: Update, steps: int, rate: float) -> Additive:
    """Codebooks and scales after one update, rounded to fp16. Raises ``OverflowError``.

    Args:
        problem: The padded problem.
        state: Where to start.
        update: The rule.
        steps: Steps of Adam, or most iterations of the solve.
        rate: Of Adam.
    """
    if update == "adam":
        return adam(problem, state, steps, rate).stored()
    return rescaled(problem, solve(problem, state, steps)).stored()


def adam(problem: Problem, state: Additive, steps: int, rate: float) -> Additive:
    """Take steps of Adam (with amsgrad) on the mean cost of a row; codes fixed."""
    codebook = torch.nn.Parameter(state.codebook.clone())
    scale = torch.nn.Parameter(state.scale.clone())
    optimizer = Adam([(codebook, rate), (scale, rate)], BETAS, amsgrad=True)
    for _ in range(steps):
        current = Additive(state.codes, codebook.detach(), scale.detach())
        sums = current.sums()
        error = problem.target - (sums * current.scale[:, None, None]).flatten(1)
        slope = (error @ problem.moment).view_as(sums) * (-2 / len(error))
        codebook.grad = _onto_entries(slope * current.scale[:, None, None], current)
        scale.grad = (slope * sums).sum((1, 2))
        optimizer.step()
    return state._replace(codebook=codebook.detach(), scale=scale.detach().clamp(min=0))


def solve(problem: Problem, state: Additive, steps: int) -> Additive:
    """Minimise the cost over the codebooks by preconditioned conjugate gradients.

    The preconditioner is the part of the normal equations that couples the columns of one entry.
    """
    group, scale = state.codebook.shape[-1], state.scale[:, None, None]
    blocks = diagonal_blocks(problem.moment, group)
    weight = state.scale.square()
    inverses = torch.stack(
        [
            torch.linalg.inv(with_ridge(entry_metrics(codes.T, blocks, weight, count)))
            for codes in state.codes.unbind(1)
            for count in (state.codebook.shape[1],)
        ]
    )

    def precondition(residual: Tensor) -> Tensor:
        return (inverses @ residual[..., None])[..., 0]

    def product(change: Tensor) -> Tensor:
        dense = (state._replace(codebook=change).sums() * scale).flatten(1)
        return _onto_entries(
            (dense @ problem.moment).view(*scale.shape[:1], -1, group) * scale, state
        )

    error = problem.target - state.dense()
    residual = _onto_entries(
        (error @ problem.moment).view(*scale.shape[:1], -1, group) * scale, state
    )
    moved = torch.zeros_like(state.codebook)
    ready = precondition(residual)
    direction, size = ready, _dot(residual, ready)
    enough = CONVERGED**2 * size
    for _ in range(steps):
        if size <= enough:
            break
        curved = product(direction)
        curvature = _dot(direction, curved)
        if curvature <= 0:
            break
        moved = moved + size / curvature * direction
        residual = residual - size / curvature * curved
        ready = precondition(residual)
        size, last = _dot(residual, ready), size
        direction = ready + size / last * direction
    return state._replace(codebook=state.codebook + moved)


def rescaled(problem: Problem, state: Additive) -> Additive:
    """The best scale of each row for its codes; a row that they say nothing of keeps its own."""
    base = state.sums().flatten(1)
    pulled = base @ problem.moment
    size = (pulled * base).sum(1)
    best = (pulled * problem.target).sum(1) / torch.where(size > 0, size, 1.0)
    return state._replace(scale=torch.where((size > 0) & (best > 0), best, state.scale))


def _onto_entries(slope: Tensor, state: Additive) -> Tensor:
    """Add up f32[n, G, g] by the codes of each codebook: f32[M, K, g]."""
    count = state.codebook.shape[1]
    return torch.stack([sums_by_code(slope, codes, count) for codes in state.codes.unbind(1)])


def _dot(left: Tensor, right: Tensor) -> float:
    return float((left * right).sum(dtype=torch.float64))
