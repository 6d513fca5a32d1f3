"""Choose the codes of a layer for given codebooks, by exact changes of the output error.

``beam_sweep`` visits the vectors of a layer once, in random order and all rows at once, and weighs
every entry of a codebook against the full moment, so it is coordinate descent over codes (with a
beam, over a few states of each row). ``feedback_codes`` chooses them left to right, each vector in
the metric of what later columns cannot compensate. A row takes new codes only if they are better by
the exact cost in fp64. Source: AQLM (arXiv 2401.06118), related-systems.md 8, A4, A5.
"""

import torch
from torch import Tensor

from qdc.numerics.additive import Additive, Problem, entries
from qdc.numerics.blocks import block_slices
from qdc.numerics.columns import block_metric
from qdc.numerics.feedback import quantize_blocks

COSTS = 1 << 24
"""Costs of entries that are held at a time."""
REVISITS = 2
"""Rounds over the codebooks of one vector after its first codes, with feedback."""


def better_rows(problem: Problem, state: Additive, codes: Tensor) -> Additive:
    """Give those rows other codes, i64[n, M, G], that cost less with them."""
    other = state._replace(codes=codes)
    better = problem.row_costs(other.dense()) < problem.row_costs(state.dense())
    return state._replace(codes=torch.where(better[:, None, None], codes, state.codes))


def visits(state: Additive, generator: torch.Generator) -> list[tuple[int, int]]:
    """Vector and codebook of each step of a sweep, both in random order."""
    _, codebooks, groups = state.codes.shape
    return [
        (group, codebook)
        for group in torch.randperm(groups, generator=generator).tolist()
        for codebook in torch.randperm(codebooks, generator=generator).tolist()
    ]


def beam_sweep(
    problem: Problem, state: Additive, beam: int, generator: torch.Generator
) -> Additive:
    """Visit every code of every row once; the cost of no row rises.

    Args:
        problem: The padded problem.
        state: Where to start.
        beam: States of a row that are carried along.
        generator: Of the order, which is the same in all rows.

    Returns:
        The state with its best codes found.
    """
    order = visits(state, generator)
    count = state.codebook.shape[1]
    step = max(1, COSTS // (beam * count))
    found = [
        _sweep_rows(
            Problem(problem.target[at : at + step], problem.moment),
            state._replace(codes=state.codes[at : at + step], scale=state.scale[at : at + step]),
            beam,
            order,
        )
        for at in range(0, len(state.codes), step)
    ]
    return better_rows(problem, state, torch.cat(found))


def _sweep_rows(
    problem: Problem, state: Additive, beam: int, order: list[tuple[int, int]]
) -> Tensor:
    """The codes of some rows after one sweep, i64[n, M, G].

    All in units of the row's scale s: with D = E / s, an entry c in place of c' costs, divided by
    s^2, c A c - 2 c (D moment + c' A) and what does not depend on c. Rows of scale 0 stay.
    """
    tables, group = state.codebook, state.codebook.shape[-1]
    scale = torch.where(state.scale > 0, state.scale, 1.0)[:, None]
    error = (problem.target - state.dense()) / scale
    # The states of a row: gradient, codes, and cost since the start, the first alone at 0.
    gradient = (error @ problem.moment).repeat(beam, 1, 1)
    codes = state.codes.repeat(beam, 1, 1, 1)
    since = torch.full((beam, len(error)), torch.inf, device=error.device)
    since[0] = 0
    for at, book in order:
        part, table = slice(at * group, (at + 1) * group), tables[book]
        metric, before = problem.moment[part, part], codes[:, :, book, at]
        old = entries(table, before)
        pull = gradient[:, :, part] + old @ metric
        costs = entry_costs(table, metric, pull)
        change = costs - costs.gather(-1, before[..., None])
        if beam == 1:
            least, best = change.min(-1)
            best = torch.where(least < 0, best, before)
        else:
            since, parent, best = _best_states(since, change)
            codes, gradient, old = (_follow(held, parent) for held in (codes, gradient, old))
        codes[:, :, book, at] = best
        moved = old - entries(table, best)
        gradient += moved @ problem.moment[part]
    row = torch.arange(len(error), device=error.device)
    best_state = since.argmin(0)
    return torch.where(state.scale[:, None, None] > 0, codes[best_state, row], state.codes)


def entry_costs(table: Tensor, metric: Tensor, pull: Tensor) -> Tensor:
    """What each entry c costs, c A c - 2 c . pull, but for what all entries share.

    Args:
        table: f32[K, g].
        metric: f32[g, g], A.
        pull: f32[..., g], A times what the entry should be.

    Returns:
        f32[..., K].
    """
    sizes = ((table @ metric) * table).sum(1)
    flat = torch.addmm(sizes, pull.flatten(0, -2), table.T, alpha=-2)
    return flat.reshape(*pull.shape[:-1], len(table))


def _best_states(since: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best ways on from all states of each row.

    Args:
        since: f32[b, n], cost of each state.
        change: f32[b, n, K], what each entry changes.

    Returns:
        Costs f32[b, n], the states that they come from i64[b, n], and entries i64[b, n].
    """
    beam, rows, count = change.shape
    total = (since[..., None] + change).transpose(0, 1).reshape(rows, beam * count)
    # A codebook of fewer entries than the beam has states cannot fill it at first.
    costs, place = total.topk(min(beam, beam * count), dim=1, largest=False)
    return costs.T, (place // count).T, (place % count).T


def _follow(states: Tensor, parent: Tensor) -> Tensor:
    """What was held for the parents of the new states, [b, n, ...]."""
    rows = torch.arange(parent.shape[1], device=parent.device).expand_as(parent)
    return states[parent, rows]


def feedback_codes(target: Tensor, upper: Tensor, state: Additive) -> Tensor:
    """Choose codes left to right, what is left of each vector taken over by later columns.

    Args:
        target: f32[n, m], without padding.
        upper: f32[m, m], factor of the damped inverse moment.
        state: Its codebooks and scales.

    Returns:
        i64[n, M, G].
    """
    books, _, group = state.codebook.shape
    scale = torch.where(state.scale > 0, state.scale, 1.0)[:, None]
    parts = block_slices(target.shape[1], group)
    found: list[Tensor] = []

    def quantize(index: int, block: Tensor) -> Tensor:
        metric = block_metric(upper[parts[index], parts[index]]).full
        tables = state.codebook[:, :, : block.shape[1]]
        rest = block / scale
        codes = torch.zeros(books, len(rest), dtype=torch.int64, device=rest.device)
        for turn in range(1 + REVISITS * (books > 1)):
            for book, table in enumerate(tables):
                if turn:
                    rest = rest + entries(table, codes[book])
                codes[book] = entry_costs(table, metric, rest @ metric).argmin(-1)
                rest = rest - entries(table, codes[book])
        found.append(codes)
        chosen = [entries(table, codes[book]) for book, table in enumerate(tables)]
        return torch.stack(chosen).sum(0) * state.scale[:, None]

    quantize_blocks(target, upper, parts, "exact", quantize)
    return torch.stack(found, dim=-1).transpose(0, 1).contiguous()
