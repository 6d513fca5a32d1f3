"""Where paper and released code differ: each difference is an option, and both sides are shown.

One test for each row of the table in the specification of the method, in its order.
"""

from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdc.format.codec import Lowered
from qdc.ir.annotations import Factor, Moment, Orders, Salience
from qdc.numerics.blocks import block_slices
from qdc.numerics.factor import factorize
from qdc.numerics.importance import importance, outlier_weight
from qdc.numerics.multibinary import dense, fit, search_signs
from qdc.passes.abmp_allocate import AbmpAllocate
from qdc.passes.calibrate_mcs import CalibrateMcs
from qdc.passes.daq_lower import Daq, DaqLower
from qdc.passes.sensitivity import Sensitivity
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import LENGTH, SAMPLES, run_passes, spying
from tests.support.lowering import lower, result, squares
from tests.support.plain import PlainModel
from tests.support.units import annotate_all, correlated_moment, make_unit, noise

COLUMNS = 160
FITTED = {"feedback": False, "compensation": "none"}
"""The fit alone, block by block."""


def flagged(weight: Tensor, moment: Tensor, **options: object) -> float:
    unit = lower({"q": weight}, moment, (2, 2), sweeps=0, **FITTED, **options)
    return unit.graph.require("q", Daq).outliers


def test_the_threshold_of_outliers() -> None:
    weight, moment = noise(40, COLUMNS), correlated_moment(COLUMNS)
    two, three = (flagged(weight, moment, sigma=sigma) for sigma in (2.0, 3.0))
    assert 0.5 * two > three > 0

    # importance is skewed to the right, so only weights that lack it can lie far below the mean
    flat, independent = torch.ones(40, COLUMNS), torch.eye(COLUMNS)
    flat[:2, :8] = 0
    share = 16 / flat.numel()
    assert flagged(flat, independent) == 0
    assert flagged(flat, independent, two_sided=True) == pytest.approx(share)


def test_the_weight_of_outliers() -> None:
    """The release's 3 is the least-squares weight itself, the paper's lambda is squared."""
    weight, moment = noise(16, COLUMNS), correlated_moment(COLUMNS)
    upper, part = factorize(moment).upper, slice(0, 128)
    block = weight[:, part]
    release, paper = (
        DaqLower(outlier_weight=given).emphasis(block, upper, part) for given in (3.0, 2.0**2)
    )
    assert set(release.flatten().tolist()) == {1, 3}
    assert set(paper.flatten().tolist()) == {1, 4}
    outliers = release > 1
    errors = [
        squares((block - dense(fit(block, 1, emphasis)[0]))[outliers])
        for emphasis in (torch.ones_like(block), release, paper)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("kind", ["conditional", "marginal"])
def test_the_diagonal_in_the_importance(kind: str) -> None:
    weight, moment = noise(6, COLUMNS), correlated_moment(COLUMNS)
    unit = make_unit(Sensitivity.model_validate({"importance": kind}), {"q": weight})
    annotate_all(unit, Moment(tensor=unit.put("m", moment), samples=1, tokens=1, masked=0))
    unit.step.run(unit)
    damped = moment.double() + 0.01 * moment.double().diagonal().mean() * torch.eye(COLUMNS)
    if kind == "conditional":
        # of the inverse of what is left once the columns before are frozen
        left = [torch.linalg.inv(damped[j:, j:])[0, 0] for j in range(COLUMNS)]
        scores = weight.double().square() / torch.stack(left)
    else:
        scores = (weight.double() / torch.linalg.inv(damped).diagonal()).square()
    expected = [float(scores[:, part].sum()) for part in block_slices(COLUMNS)]
    assert unit.graph.require("q", Salience).blocks == pytest.approx(expected, rel=1e-4)

    step = DaqLower.model_validate({"importance": kind})
    for part in block_slices(COLUMNS):
        emphasis = step.emphasis(weight[:, part], factorize(moment).upper, part)
        mine = scores[:, part]
        assert torch.equal(emphasis > 1, mine > mine.mean() + 2 * mine.std())


def test_the_weights_in_the_importance() -> None:
    """The second block has changed by then, where errors are moved."""
    weight, moment = noise(12, COLUMNS), correlated_moment(COLUMNS)
    moved = [
        result(lower({"q": weight}, moment, (1, 2), outliers_of=which, feedback=False))
        for which in ("current", "original")
    ]
    assert torch.equal(moved[0][:, :128], moved[1][:, :128])
    assert not torch.equal(moved[0][:, 128:], moved[1][:, 128:])
    still = [
        result(lower({"q": weight}, moment, (1, 2), outliers_of=which, **FITTED))
        for which in ("current", "original")
    ]
    assert torch.equal(*still)


def test_the_fit_of_several_components() -> None:
    weight, moment = noise(24, COLUMNS), torch.eye(COLUMNS)
    fits = {
        (kind, order): result(
            lower({"q": weight}, moment, (order, order), fit=kind, outlier_weight=1, **FITTED)
        )
        for kind in ("joint", "greedy")
        for order in (1, 2, 3)
    }
    assert torch.equal(fits["joint", 1], fits["greedy", 1])
    for order in (2, 3):
        joint, greedy = (squares(weight - fits[kind, order]) for kind in ("joint", "greedy"))
        assert joint < 0.97 * greedy
        last = fits["greedy", order] - fits["greedy", order - 1]
        rest = weight - fits["greedy", order - 1]
        agree = (last.sign() == rest.sign()).double().mean()
        assert agree > 0.99, "the signs of a component are those of what was left"


@pytest.mark.parametrize("rule", ["none", "diag", "exact"])
def test_compensation_between_blocks(rule: str) -> None:
    weight, moment = noise(8, COLUMNS), correlated_moment(COLUMNS)
    options = {"compensation": rule, "feedback": False, "sweeps": 3}
    found = result(lower({"q": weight}, moment, (1, 2), **options))
    upper = factorize(moment).upper
    first, second = block_slices(COLUMNS)
    error = weight[:, first] - found[:, first]
    triangle = upper[first, first]
    if rule == "diag":
        moved = error / triangle.diagonal() @ upper[first, second]
    elif rule == "exact":
        moved = error.double() @ torch.linalg.inv(triangle.double()) @ upper[first, second].double()
    else:
        moved = torch.zeros_like(weight[:, second])
    block = weight[:, second] - moved.float()
    emphasis = outlier_weight(importance(block, upper[second, second]), 2.0, 3.0)
    expected = dense(fit(block, 2, emphasis, sweeps=3)[0])
    torch.testing.assert_close(found[:, second], expected, rtol=1e-2, atol=1e-3)


def test_times_of_the_samples() -> None:
    release, paper = CalibrateMcs(samples=4), CalibrateMcs(samples=2, timesteps=4)
    assert release.times().tolist() == [0.25, 0.5, 0.75, 1]
    assert paper.times().tolist() == 2 * [0.25, 0.5, 0.75, 1]


def test_the_clean_copy() -> None:
    times = [CalibrateMcs(samples=5, clean_copy=clean).times() for clean in (False, True)]
    assert [float(t.min()) for t in times] == pytest.approx([0.2, 0])
    assert [float(t.max()) for t in times] == [1, 1]


@pytest.mark.parametrize("feedback", [False, True])
def test_a_factor_of_the_moment_cancels(feedback: bool) -> None:
    """Mean over times or 2 / N: this row of the table cannot differ."""
    weight, moment = noise(12, 384), correlated_moment(384)
    one, *others = (
        result(lower({"q": weight}, factor * moment, (1, 2, 3), feedback=feedback))
        for factor in (1, 4, 2.0**-10)
    )
    assert all(torch.equal(one, other) for other in others)
    orders = []
    for factor in (1, 3, 0.01):
        unit = make_unit(Sensitivity(), {"q": weight})
        ref = unit.put("m", factor * moment)
        annotate_all(unit, Moment(tensor=ref, samples=1, tokens=1, masked=0))
        unit.step.run(unit)
        AbmpAllocate(ratio=0.4).run(unit)
        orders.append(unit.graph.require("q", Orders).blocks)
    assert sorted(orders[0]) == [1, 2, 3]
    assert orders[0] == orders[1] == orders[2]


def test_damping_in_place() -> None:
    """The release damps the moment of a group once more for each of its layers (Dream)."""
    moment = correlated_moment(48)
    weights = {name: noise(3, 48, seed) for seed, name in enumerate("kvq")}
    shares: dict[bool, list[float]] = {}
    for accumulate in (False, True):
        unit = make_unit(Sensitivity(accumulate=accumulate), weights)
        annotate_all(unit, Moment(tensor=unit.put("m", moment), samples=1, tokens=1, masked=0))
        unit.step.run(unit)
        damped = moment.double().clone()
        for name in weights:
            if accumulate or name == "k":
                damped += 0.01 * damped.diagonal().mean() * torch.eye(48)
            upper = unit.get(unit.graph.require(name, Factor).tensor).double()
            torch.testing.assert_close(
                upper.T @ upper @ damped, torch.eye(48).double(), rtol=0, atol=1e-4
            )
        shares[accumulate] = [unit.graph.require(name, Factor).damp for name in weights]
    assert shares[False] == [0.01] * 3
    assert shares[True] == pytest.approx([0.01, 0.0201, 0.030301])


@pytest.mark.parametrize("order", ["natural", "outputs-first"])
def test_the_order_of_the_layers(order: str, tmp_path: Path) -> None:
    """The release calibrates the output projections while what feeds them is still original."""
    model = write_checkpoint(
        tmp_path / "model", d_model=32, mlp_hidden_size=48, dtype=torch.float32
    )
    moments: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    calls: list[str] = []
    tokens: list[Tensor] = []

    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            if label == "before":
                moments[node.name] = unit.get(unit.graph.require(node.name, Moment).tensor).clone()
                calls.append(node.name)
            else:
                note = unit.graph.require(node.name, Lowered)
                weights[node.name] = note.codec.dense(note.working(unit.tensors))
        tokens.append(unit.open_streams()[0, False].tokens)

    calibrate = f"calibrate-mcs{{samples={SAMPLES} length={LENGTH}}}"
    inside = f"{calibrate},spy{{label=before}},rtn-lower{{bits=1}},spy{{label=after}}"
    passes = f"stages{{order={order}}}({inside}),pack"
    run_passes(model, tmp_path, spying(look), passes)
    plain = PlainModel(model, tokens[0])
    qkv, gates = ("q_proj", "k_proj", "v_proj"), ("ff_proj", "up_proj")
    stages = [qkv, ("attn_out",), gates, ("ff_out",)]
    if order == "outputs-first":
        stages = [("attn_out",), ("ff_out",), qkv, gates]
    for number in range(2):
        layers = [[f"blocks.{number}.{name}" for name in stage] for stage in stages]
        assert [calls.pop(0) for _ in range(7)] == list(chain(*layers))
        for stage in layers:
            for layer in stage:
                expected = plain.moment(layer)
                torch.testing.assert_close(moments[layer], expected, rtol=1e-3, atol=1e-5)
            plain.replace({layer: weights[layer] for layer in stage})


def test_scope_and_rounding_of_the_allocation() -> None:
    """Blocks of one linear are ranked among themselves; a share of them is rounded down."""
    weights = {name: torch.zeros(1, 32 * 8) for name in "qk"}
    falling = tuple(float(32 - index) for index in range(32))
    orders: dict[str, list[tuple[int, ...]]] = {}
    for scope in ("layer", "stage"):
        unit = make_unit(AbmpAllocate.model_validate({"scope": scope}), weights)
        for node, scores in zip(unit.layers(), (falling, falling[::-1]), strict=True):
            unit.annotate(node, Salience(blocks=scores, widths=(8,) * 32))
        unit.step.run(unit)
        orders[scope] = [unit.graph.require(name, Orders).blocks for name in weights]
    assert orders["layer"] == [(3, *[2] * 30, 1), (1, *[2] * 30, 3)], "3.1 % at 5 %"
    assert orders["stage"][0] == orders["stage"][1]


def test_zeros_have_a_sign() -> None:
    """The release leaves zeros where the order is 1, which no bit can store; ours are +1."""
    weight = noise(6, COLUMNS)
    weight[:, ::3] = 0
    unit = lower({"q": weight}, torch.eye(COLUMNS), (1, 2), **FITTED)
    signs = unit.graph.require("q", Daq).working(unit.tensors)["signs"]
    assert set(signs.flatten().tolist()) == {-1, 1}
    assert bool((signs[:, 0, ::3][:, :42] == 1).all())


def test_weights_cancel_in_the_choice_of_signs() -> None:
    """Weighted or not: this row of the table cannot differ."""
    block = noise(8, 24)
    fitted, _ = fit(block, 3, torch.ones_like(block), sweeps=2)
    chosen = dense(search_signs(block, fitted))
    emphasis = torch.rand(8, 24, generator=torch.Generator().manual_seed(1)) + 0.01
    cost = emphasis * (block - chosen).square()
    for pattern in range(8):
        signs = torch.tensor([1 - 2 * (pattern >> k & 1) for k in range(3)], dtype=torch.int8)
        other = dense(fitted._replace(signs=signs[:, None, None].expand(3, 8, 24)))
        assert bool((cost <= emphasis * (block - other).square() * (1 + 1e-6)).all())
