"""The knapsack against every choice there is, and what its results promise."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdc.numerics.knapsack import allocate_orders, highest_reachable

Rows = list[list[float]]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Rows, list[int], int]:
    """Costs that may tie, rise with the order or be zero; sizes; some total."""
    blocks, orders = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    cost = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 1e3))
    costs = draw(st.lists(st.lists(cost, min_size=orders, max_size=orders), min_size=blocks,
                          max_size=blocks))  # fmt: skip
    sizes = draw(st.lists(st.integers(1, 6), min_size=blocks, max_size=blocks))
    total = draw(st.integers(sum(sizes), orders * sum(sizes) + 3))
    return costs, sizes, total


def choices(costs: Rows, sizes: list[int]) -> list[tuple[int, float]]:
    """Units and cost of every choice of orders."""
    found = []
    for orders in product(range(1, len(costs[0]) + 1), repeat=len(sizes)):
        units = sum(size * order for size, order in zip(sizes, orders, strict=True))
        cost = sum(row[order - 1] for row, order in zip(costs, orders, strict=True))
        found.append((units, cost))
    return found


def solve(costs: Rows, sizes: list[int], total: int, *, exact: bool) -> tuple[int, float]:
    orders = allocate_orders(np.array(costs), np.array(sizes), total, exact=exact)
    units = sum(size * order for size, order in zip(sizes, orders, strict=True))
    return units, sum(row[order - 1] for row, order in zip(costs, orders, strict=True))


@given(problems())
def test_the_highest_total_is_the_one_that_counting_finds(
    problem: tuple[Rows, list[int], int],
) -> None:
    costs, sizes, total = problem
    reachable = {units for units, _ in choices(costs, sizes)}
    found = highest_reachable(sizes, len(costs[0]), total)
    assert found == max(units for units in reachable if units <= total)
    assert highest_reachable(sizes, len(costs[0]), sum(sizes) - 1) is None


@given(problems())
def test_an_exact_total_is_met_at_the_lowest_cost(problem: tuple[Rows, list[int], int]) -> None:
    costs, sizes, limit = problem
    total = highest_reachable(sizes, len(costs[0]), limit)
    assert total is not None
    units, cost = solve(costs, sizes, total, exact=True)
    assert units == total
    best = min(cost for units, cost in choices(costs, sizes) if units == total)
    assert cost == pytest.approx(best, rel=1e-12, abs=1e-9)


@given(problems())
def test_an_upper_bound_is_kept_at_the_lowest_cost(problem: tuple[Rows, list[int], int]) -> None:
    costs, sizes, total = problem
    units, cost = solve(costs, sizes, total, exact=False)
    assert units <= total
    best = min(cost for units, cost in choices(costs, sizes) if units <= total)
    assert cost == pytest.approx(best, rel=1e-12, abs=1e-9)


@given(problems())
def test_more_room_never_costs_more(problem: tuple[Rows, list[int], int]) -> None:
    costs, sizes, total = problem
    less, more = (solve(costs, sizes, t, exact=False)[1] for t in (total, total + 1))
    assert more <= less + 1e-9


def by_table(costs: np.ndarray, sizes: list[int], total: int) -> float:
    """Lowest cost of exactly ``total`` units: the plain table over all totals."""
    table = np.full(total + 1, np.inf)
    table[0] = 0
    for row, size in zip(costs, sizes, strict=True):
        after = np.full(total + 1, np.inf)
        for order, cost in enumerate(row, 1):
            after[order * size :] = np.minimum(
                after[order * size :], table[: total + 1 - order * size] + cost
            )
        table = after
    return float(table[total])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [1.2, 2, 2.7])
def test_many_blocks_are_as_good_as_by_the_plain_table(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    scale = np.exp(generator.normal(0, 2, 300))[:, None]
    costs = scale * 0.3 ** np.arange(4) * np.exp(generator.normal(0, 0.2, (300, 4)))
    sizes = generator.choice([1, 3], 300).tolist()
    total = highest_reachable(sizes, 4, int(share * sum(sizes)))
    assert total == int(share * sum(sizes))
    _, cost = solve(costs.tolist(), sizes, total, exact=True)
    assert cost == pytest.approx(by_table(costs, sizes, total), rel=1e-9)


def test_costs_that_are_all_equal_are_no_trouble() -> None:
    assert solve([[1.0] * 4] * 2000, [1] * 2000, 4000, exact=True) == (4000, 2000.0)


def test_the_most_gain_for_a_unit_goes_first() -> None:
    costs = np.array([[9.0, 4, 1, 0], [5, 1, 0, 0], [1, 0.5, 0.2, 0.1]])
    assert allocate_orders(costs, np.array([1, 1, 1]), 6, exact=True) == (3, 2, 1)


@pytest.mark.parametrize(
    ("costs", "sizes", "total", "text"),
    [
        ([[1.0, 0.5]], [1, 1], 2, "do not match"),
        ([[float("nan"), 0.5]], [1], 1, "not finite"),
        ([[1.0, 0.5]], [0], 1, "not positive"),
        ([[1.0, 0.5]], [4], 3, "takes 3 units"),
        ([[1.0, 0.5]], [4], 6, "takes 6 units"),
        ([[1.0, 0.5]], [4], 12, "takes 12 units"),
    ],
)
def test_refuses_what_has_no_answer(costs: Rows, sizes: list[int], total: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        allocate_orders(np.array(costs), np.array(sizes), total, exact=True)
