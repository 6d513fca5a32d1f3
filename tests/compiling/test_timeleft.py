"""The time that is left: the plan's shares, corrected by what was measured."""

from typing import Any

import pytest

from qdc.compiling.ticker import PATIENCE, Ticker
from qdc.compiling.timeleft import seconds_left
from qdc.units import DetailedProgress

TWO = [(0, 1.0), (1, 4.0)] * 3
"""A short and a long pass on three units."""


def test_nothing_measured_is_what_the_plan_expects() -> None:
    assert seconds_left(TWO, [], 0, 0) == 15
    assert seconds_left(TWO, [], 0, 0.5) == 14.5


def test_a_run_that_is_twice_as_slow_takes_twice_as_long() -> None:
    assert seconds_left(TWO, [2.0, 8.0], 0, 0) == pytest.approx(20)
    assert seconds_left(TWO, [2.0, 8.0, 2.0, 8.0, 2.0], 0, 3) == pytest.approx(5)


def test_each_pass_is_corrected_by_itself() -> None:
    """The short one took what was expected of it, the long one three times as much."""
    left = seconds_left(TWO, [1.0, 12.0, 1.0, 12.0], 0, 0)
    assert 10 < left < 1 + 12 + 2
    assert seconds_left(TWO, [1.0], 0, 0) == pytest.approx(14)


def test_what_overruns_is_never_negative() -> None:
    assert seconds_left(TWO, [1.0] * 5, 0, 1e9) == pytest.approx(0)


def test_a_pass_of_which_nothing_is_expected_has_its_own_mean() -> None:
    odd = [(0, 0.0), (1, 2.0)] * 2
    assert seconds_left(odd, [3.0, 2.0], 0, 0) == pytest.approx(3 + 2 * (2 + 2.5 * 2) / 4)
    assert seconds_left([(0, 0.0)] * 3, [3.0], 0, 0) == pytest.approx(6)


def test_a_resumed_run_measures_from_where_it_began() -> None:
    assert seconds_left(TWO, [8.0], 3, 0) == pytest.approx(2 * (1 + 4))


class Heard(DetailedProgress):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self.worked: list[tuple[str, float | None]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        self.steps.append((done, total))

    def working(self, on: str, left: float | None) -> None:
        self.worked.append((on, left))


class Region:
    name = "blocks.0"


class Stage:
    layers = ("blocks.0.q_proj", "blocks.0.k_proj")


class Fake:
    """Of a unit, what the ticker reads."""

    step: Any = type("Step", (), {"name": "rtn-lower"})()
    region: Any = Region()
    stages = (Stage(),)
    whole_region = False


def test_ticker_asks_the_plan_once_and_only_if_it_takes_long() -> None:
    now, asked, heard = [0.0], [], Heard()

    def expect() -> list[tuple[int, float]]:
        asked.append(now[0])
        return [(0, 2.0)] * 4

    ticker, unit = Ticker(heard, 4, expect, lambda: now[0]), Fake()
    for _ in range(3):
        ticker.before(0, unit)  # type: ignore[arg-type]
        now[0] += PATIENCE
        ticker.after(0, unit)  # type: ignore[arg-type]
    assert asked == [PATIENCE]
    assert heard.worked == [
        ("rtn-lower blocks.0 q_proj k_proj", None),
        ("rtn-lower blocks.0 q_proj k_proj", 6.0),
        ("rtn-lower blocks.0 q_proj k_proj", 4.0),
    ]
    assert heard.steps[-1] == (3, 4)


def test_who_wants_no_details_gets_none() -> None:
    told: list[tuple[str, int, int]] = []
    ticker = Ticker(lambda *step: told.append(step), 1, lambda: pytest.fail("nobody asked"))
    ticker.before(0, Fake())  # type: ignore[arg-type]
    ticker.after(0, Fake())  # type: ignore[arg-type]
    assert told == [("run the passes", 1, 1)]
