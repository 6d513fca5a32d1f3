from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdc.numerics.allocation import abmp_orders


@pytest.mark.parametrize(
    ("blocks", "ratio", "moved"),
    [
        (32, 0.05, 1),
        (96, 0.05, 4),
        (28, 0.1, 2),
        (148, 0.15, 22),
        (30, 0.1, 3),
        (100, 0.29, 29),  # 0.29 * 100 is 28.999999999999996
        (19, 0.05, 0),
        (5, 0.5, 2),
        (1, 0.5, 0),
        (32, 0.0, 0),
    ],
)
def test_counts(blocks: int, ratio: float, moved: int) -> None:
    orders = Counter(abmp_orders([float(i) for i in range(blocks)], [128] * blocks, ratio))
    assert orders == Counter({2: blocks - 2 * moved}) + Counter({1: moved, 3: moved})


def test_moves_an_order_from_the_least_to_the_most_salient() -> None:
    assert abmp_orders((5.0, 1.0, 9.0, 4.0), (4,) * 4, 0.25) == (2, 1, 3, 2)
    assert abmp_orders((5.0, 1.0, 9.0, 4.0), (4,) * 4, 0.25, base=3) == (3, 2, 4, 3)


def test_ties_lower_the_first_and_raise_the_last() -> None:
    assert abmp_orders((1.0,) * 5, (4,) * 5, 0.4) == (1, 1, 2, 3, 3)


@pytest.mark.parametrize("score", [0.0, 99.0])
def test_a_narrow_last_block_keeps_the_base(score: float) -> None:
    orders = abmp_orders((5.0, 1.0, 9.0, 4.0, score), (4, 4, 4, 4, 3), 0.25)
    assert orders == (2, 1, 3, 2, 2)


@given(
    scores=st.lists(st.floats(0, 1e6), min_size=1, max_size=40),
    ratio=st.floats(0, 0.5),
    ragged=st.integers(1, 128),
    base=st.integers(2, 3),
)
def test_the_mean_over_the_weights_is_the_base(
    scores: list[float], ratio: float, ragged: int, base: int
) -> None:
    widths = [128] * (len(scores) - 1) + [ragged]
    orders = abmp_orders(scores, widths, ratio, base)
    assert sum(o * w for o, w in zip(orders, widths, strict=True)) == base * sum(widths)
    raised = [s for s, o in zip(scores, orders, strict=True) if o > base]
    lowered = [s for s, o in zip(scores, orders, strict=True) if o < base]
    assert not raised or min(raised) >= max(lowered)


@pytest.mark.parametrize("ratio", [-0.01, 0.51, float("nan"), float("inf")])
def test_refuses_a_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio"):
        abmp_orders((1.0, 2.0), (4, 4), ratio)


@pytest.mark.parametrize(("base", "ratio"), [(1, 0.5), (4, 0.5), (0, 0.0), (5, 0.0)])
def test_refuses_orders_out_of_range(base: int, ratio: float) -> None:
    with pytest.raises(ValueError, match=r"outside 1\.\.4"):
        abmp_orders((1.0, 2.0), (4, 4), ratio, base)


@pytest.mark.parametrize("base", [1, 4])
def test_extreme_bases_work_when_nothing_moves(base: int) -> None:
    assert abmp_orders((1.0, 2.0), (4, 4), 0.0, base) == (base, base)


def test_refuses_scores_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="match"):
        abmp_orders((1.0,), (4, 4), 0.1)
    with pytest.raises(ValueError, match="match"):
        abmp_orders((), (), 0.1)
    with pytest.raises(ValueError, match="NaN"):
        abmp_orders((1.0, float("nan")), (4, 4), 0.5)
