"""Rows of the table, from results over seeds: means, pairs, errors."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from qdc.comparing.jobs import Row
from qdc.comparing.methods import Method
from qdc.comparing.result import Cost, Drift, Losses, Result
from qdc.comparing.runner import Job
from qdc.comparing.summary import method_row, method_rows, variations
from qdc.comparing.vary import Axis, Variant
from qdc.pipeline.plan import Plan

METHOD = Method("gptq", "gptq", Plan(()), 2, "arXiv")
TOKENS = (10, 10, 20, 20)
OWNERS = (0, 0, 1, 2)


def result(level: float, seed: int, noise: float = 0.0) -> Result:
    """A result whose loss rises by about ``level`` at ratio 0.5."""
    draw = random.Random(seed)
    due = Losses(ratio=0.5, tokens=TOKENS, losses=tuple(3.0 * count for count in TOKENS))
    found = tuple(
        loss + count * (level + noise * draw.uniform(-1, 1))
        for loss, count in zip(due.losses, TOKENS, strict=True)
    )
    mine = Losses(
        ratio=0.5, tokens=TOKENS, losses=found, agreed=tuple(0.9 * count for count in TOKENS),
        divergences=tuple(level * count for count in TOKENS),
    )  # fmt: skip
    return Result(
        digest=f"d{level}{seed}", name="gptq", seed=seed, what="gptq{}", version="qdc", created="",
        environment={}, sign_bits=2, effective_bits=2.25 + seed, file_bytes=100, layers={},
        cost=Cost(seconds=1 + seed, processor_seconds=1, peak_bytes=10 + seed, threads=1,
                  load=(0, 0, 0)),
        passes={}, owners=OWNERS, candidate=(mine,), original=(due,),
        drift=Drift(layers={"a": level, "b": 2 * level}, regions=(), divergence=level),
    )  # fmt: skip


def row_of(variant: Variant, seeds: Sequence[int]) -> Row:
    jobs = tuple(Job(f"{variant.name} seed {seed}", None) for seed in seeds)
    return Row(variant, jobs)


def found_of(row: Row, level: float, noise: float = 0.0) -> Mapping[str, Result]:
    return {job.path: result(level, seed, noise) for seed, job in enumerate(row.jobs)}


def test_figures_are_means_over_seeds_with_what_they_spread() -> None:
    row = row_of(Variant(METHOD), (0, 1))
    found = {row.jobs[0].path: result(0.1, 0), row.jobs[1].path: result(0.3, 1)}
    made = method_row(row, found, {})
    [rise] = made.rises
    assert rise.rise == pytest.approx(0.2)
    assert rise.by_seed == pytest.approx((0.1, 0.3))
    assert rise.deviation == pytest.approx(0.02**0.5)
    assert rise.standard_error == pytest.approx(0, abs=1e-12)
    assert (made.effective_bits, made.seconds, made.peak_bytes) == (2.75, 1.5, 11)
    assert made.top1 == pytest.approx(0.9)
    assert made.divergence == pytest.approx(0.2)
    assert made.layer_errors == pytest.approx({"a": 0.2, "b": 0.4})
    assert made.seeds == (0, 1)


def test_one_seed_has_no_spread() -> None:
    row = row_of(Variant(METHOD), (0,))
    [rise] = method_row(row, found_of(row, 0.1, noise=0.05), {}).rises
    assert rise.deviation is None
    assert rise.interval is not None
    assert rise.interval[0] < rise.rise < rise.interval[1]


def test_best_comes_first_and_what_has_failed_last() -> None:
    names = {"good": 0.1, "bad": 0.3, "broken": None}
    rows, found = [], dict[str, Result]()
    for name, level in names.items():
        row = row_of(Variant(replace(METHOD, name=name)), (0,))
        rows.append(row)
        found |= {} if level is None else found_of(row, level)
    made = method_rows(reversed(rows), found, {"broken seed 0": "no memory"}, 0.5)
    assert [row.name for row in made] == ["good", "bad", "broken"]
    assert made[2].error == "no memory"


def test_a_seed_that_has_failed_is_named_beside_the_others() -> None:
    row = row_of(Variant(METHOD), (0, 1))
    found = {row.jobs[0].path: result(0.1, 0)}
    made = method_row(row, found, {"gptq seed 1": "killed by SIGKILL"})
    assert made.error == "gptq seed 1: killed by SIGKILL"
    assert made.seeds == (0,)
    assert made.rises[0].rise == pytest.approx(0.1)


def test_values_of_an_option_are_compared_in_pairs() -> None:
    """What seeds and windows have in common cancels out: the interval is narrower than each."""
    axis = Axis("geometry", ("clean", "mcs"))
    rows = [row_of(Variant(METHOD, {"geometry": value}), (0, 1)) for value in axis.values]
    found = {**found_of(rows[0], 0.3, noise=0.2), **found_of(rows[1], 0.2, noise=0.2)}
    [made] = variations(rows, [axis], found)
    assert (made.method, made.base, made.value) == ("gptq", "clean", "mcs")
    assert made.difference == pytest.approx(-0.1)
    assert made.difference == pytest.approx(made.rise - made.base_rise)
    assert made.interval == pytest.approx((-0.1, -0.1))
    assert made.deviation == pytest.approx(0, abs=1e-12)
    [alone] = method_row(rows[0], found, {}).rises
    assert alone.interval is not None
    assert alone.interval[1] - alone.interval[0] > 0.01


def test_other_options_stay_equal_in_a_pair_and_seeds_are_shared() -> None:
    axes = [Axis("geometry", ("clean", "mcs")), Axis("search", ("clip", "minmax"))]
    rows, found = [], dict[str, Result]()
    levels = iter((0.1, 0.2, 0.4, 0.8))
    for geometry in axes[0].values:
        for search in axes[1].values:
            row = row_of(Variant(METHOD, {"geometry": geometry, "search": search}), (0, 1))
            rows.append(row)
            found |= found_of(row, next(levels))
    del found["gptq geometry=mcs search=clip seed 1"]
    made = {(v.option, *v.others.values()): v for v in variations(rows, axes, found)}
    assert {key: round(v.difference, 6) for key, v in made.items()} == {
        ("geometry", "clip"): 0.3,
        ("geometry", "minmax"): 0.6,
        ("search", "clean"): 0.1,
        ("search", "mcs"): 0.4,
    }
    assert made["geometry", "clip"].deviation is None
