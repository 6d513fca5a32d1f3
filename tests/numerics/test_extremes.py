"""Between what sizes the plan says that an allocation over the whole model may lie."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.numerics.knapsack import extremes

HIGHEST = 3


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=5), st.data())
def test_no_allocation_leaves_the_bounds(
    blocks: list[tuple[int, int]], data: st.DataObject
) -> None:
    sizes, nbytes = (np.array(column, dtype=np.int64) for column in zip(*blocks, strict=True))
    orders = [np.array(o) for o in itertools.product(range(1, HIGHEST + 1), repeat=len(blocks))]
    total = int(data.draw(st.sampled_from(orders)) @ sizes)
    found = [int(o @ nbytes) for o in orders if int(o @ sizes) == total]
    low, high = extremes(sizes, nbytes, total, HIGHEST)
    assert low <= min(found)
    assert max(found) <= high


def test_equal_prices_leave_no_choice() -> None:
    sizes = np.array([2, 4, 6], dtype=np.int64)
    assert extremes(sizes, 5 * sizes, 24, HIGHEST) == (120, 120)
