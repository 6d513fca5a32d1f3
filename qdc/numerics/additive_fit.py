"""Alternate codebook updates and searches over the codes until the cost hardly falls any more.

Source: AQLM (arXiv 2401.06118), related-systems.md 8. Ours: nothing is taken that costs more by the
exact cost, and ``feedback`` brings codes from elsewhere to each search.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qdc.numerics.additive import Additive, Problem
from qdc.numerics.additive_search import beam_sweep, better_rows
from qdc.numerics.additive_update import Update, updated


def fit_additive(
    problem: Problem,
    state: Additive,
    *,
    update: Update = "adam",
    steps: int = 100,
    rate: float = 1e-4,
    epochs: int = 1000,
    tolerance: float = 0.01,
    beam: int = 1,
    seed: int = 0,
    feedback: Callable[[Additive], Tensor] | None = None,
) -> tuple[Additive, list[float]]:
    """Fit codes, codebooks and scales to a problem.

    Args:
        problem: Padded to the vectors of the state.
        state: Where to start, rounded to what is stored.
        update: How codebooks and scales follow the codes.
        steps: Steps of an update.
        rate: Of Adam.
        epochs: Most updates, each with a search behind it.
        tolerance: An epoch is the last once it gains less than this share; 0 goes on until one
            gains nothing.
        beam: States of a row that a search carries along.
        seed: Of the orders in which searches visit the codes.
        feedback: Gives codes i64[n, M, G] for a state, which rows take before a search where they
            are better.

    Returns:
        The state, rounded to what is stored, and the cost at the start and after each epoch.
    """
    generator = torch.Generator().manual_seed(seed)

    def searched(state: Additive) -> Additive:
        if feedback is not None:
            state = better_rows(problem, state, feedback(state))
        return beam_sweep(problem, state, beam, generator)

    costs = [problem.cost(state)]
    if feedback is not None:
        state = searched(state)
        costs = [problem.cost(state)]
    for _ in range(epochs):
        try:
            moved = updated(problem, state, update, steps, rate)
        except OverflowError:
            break  # what was found before still fits fp16
        if problem.cost(moved) < costs[-1]:
            state = moved
        state = searched(state)
        costs.append(problem.cost(state))
        if costs[-2] - costs[-1] <= tolerance * costs[-1]:
            break
    return state, costs
