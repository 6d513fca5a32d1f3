"""quip-lower: against LDLQ by its definition, its options, what it stores and refuses."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidCheckpoint
from qdc.ir.annotations import Factor
from qdc.ir.cross import CrossMoment
from qdc.ir.verify import verify
from qdc.numerics.asymmetry import drifted_target
from qdc.numerics.factor import factorize
from qdc.numerics.feedback import residual_cost
from qdc.numerics.hadamard import RandomHadamard, random_seed
from qdc.numerics.lattice import lattice_points, nearest_codes
from qdc.passes.quip_lower import LatticeSearch, Quip, QuipLower
from qdc.passkit import Problem
from qdc.streaming.unit import Unit
from tests.support.units import annotate_all, correlated_moment, make_unit, noise, put_statistics


def lower(weight: Tensor, moment: Tensor, cross: Tensor | None = None, **options: Any) -> Unit:
    unit = make_unit(QuipLower.model_validate(options), {"q": weight})
    put_statistics(unit, moment, (2,) * -(-moment.shape[0] // 128))
    if cross is not None:
        annotate_all(unit, CrossMoment(tensor=unit.put("x:cross-moment", cross), drift=0.1))
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="quip-lower")
    return unit


def result(unit: Unit) -> Tensor:
    note = unit.graph.require("q", Quip)
    return note.codec.dense(note.working(unit.tensors))


def cost(unit: Unit, weight: Tensor) -> float:
    return residual_cost(weight, result(unit), unit.get(unit.graph.require("q", Factor).tensor))


def test_is_ldlq_of_eight_columns_from_the_last_to_the_first() -> None:
    weight, moment = noise(6, 40), correlated_moment(40)
    unit = lower(weight, moment, sweeps=0)
    inputs = RandomHadamard.of(40, random_seed(0, "inputs", "x40"))
    outputs = RandomHadamard.of(6, random_seed(0, "outputs", "q"))
    rotated = outputs.forward(inputs.forward(weight.double()).T).T
    damped = moment.double() + 0.01 * moment.diagonal().double().mean() * torch.eye(40)
    turned = inputs.forward(inputs.forward(damped).T)
    # H = L D L^T with unit lower block-triangular L.
    root = torch.linalg.cholesky(turned)
    blocks = root * torch.kron(torch.eye(5), torch.ones(8, 8)).double()
    unit_lower = root @ torch.linalg.inv(blocks)
    scale = float(unit.graph.require("q", Quip).working(unit.tensors)["scale"])
    found = torch.zeros_like(rotated)
    for k in range(32, -1, -8):
        error = (rotated - found)[:, k + 8 :]
        place = rotated[:, k : k + 8] + error @ unit_lower[k + 8 :, k : k + 8]
        codes = nearest_codes((place / scale).float())
        found[:, k : k + 8] = lattice_points(codes).double() * scale
    expected = inputs.inverse(outputs.inverse(found.T).T)
    torch.testing.assert_close(result(unit).double(), expected, rtol=1e-4, atol=1e-5)


def test_sweeps_never_raise_the_loss() -> None:
    weight, moment = noise(16, 64), correlated_moment(64)
    found = [cost(lower(weight, moment, sweeps=sweeps), weight) for sweeps in range(4)]
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(found))
    assert found[-1] < found[0]


def test_reproduces_the_reference_error_on_gaussian_weights() -> None:
    weight = noise(128, 512)
    for scale, expected in ((1.03, 0.092), (0.9, 0.0997)):
        unit = lower(weight, torch.eye(512), sweeps=0, scale=scale)
        error = float((result(unit) - weight).square().sum() / weight.square().sum())
        assert error == pytest.approx(expected, rel=0.03)
        assert 8 * unit.graph.require("q", Quip).codec.nbytes / weight.numel() < 2.002


def test_a_rotation_spreads_what_sticks_out() -> None:
    weight = noise(64, 256)
    weight[:, 5] *= 40
    weight[7] *= 20
    unit = lower(weight, torch.eye(256), sweeps=0, scale=1.03)
    plain = weight / weight.square().mean().sqrt() * 1.03
    points = lattice_points(nearest_codes(plain.reshape(-1, 8))).reshape(weight.shape)
    without = float((points - plain).square().sum() / plain.square().sum())
    error = float((result(unit) - weight).square().sum() / weight.square().sum())
    assert error < 0.15 < 0.5 < without


def test_our_loop_is_never_worse_than_the_published_one() -> None:
    for seed in range(3):
        weight, moment = noise(12, 72, seed), correlated_moment(72, seed)
        published = cost(lower(weight, moment, sweeps=2), weight)
        searched = cost(lower(weight, moment, sweeps=2, search=True, rounds=2), weight)
        assert searched < published


def test_options_change_what_they_say() -> None:
    weight, moment = noise(8, 48), correlated_moment(48)
    plain = result(lower(weight, moment))
    variants: list[dict[str, Any]] = [
        {"order": "natural"},
        {"rescale": True},
        {"seed": 1},
        {"compensation": "none"},
        {"rounds": 1},
        {"scale": 1.0},
    ]
    for options in variants:
        assert not torch.equal(result(lower(weight, moment, **options)), plain), options
    assert torch.equal(result(lower(weight, moment)), plain)


@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (1, 8), (5, 12), (3, 57)])
@pytest.mark.parametrize("order", ["natural", "reversed"])
def test_any_shape_is_rounded(rows: int, columns: int, order: str) -> None:
    weight, moment = noise(rows, columns), correlated_moment(columns)
    unit = lower(weight, moment, order=order, rescale=True, search=True, rounds=1)
    assert unit.graph.require("q", Quip).error < 0.5  # type: ignore[operator]
    note = unit.graph.require("q", Quip)
    note.codec.pack_exactly(note.working(unit.tensors), "q")


def test_dead_inputs_and_empty_weights() -> None:
    moment = correlated_moment(32)
    moment[3], moment[:, 3] = 0, 0
    weight = noise(4, 32)
    weight[:, 3] = 1000
    assert unit_error(lower(weight, moment)) < 0.2
    assert torch.equal(result(lower(torch.zeros(4, 32), moment)), torch.zeros(4, 32))


def unit_error(unit: Unit) -> float:
    found = unit.graph.require("q", Quip).error
    assert found is not None
    return found


def test_drift_is_taken_back_before_the_rotation() -> None:
    weight, moment = noise(8, 40), correlated_moment(40)
    upper, drift = factorize(moment).upper, noise(40, 40, 5) / 4
    target = drifted_target(weight, drift, upper, 1)
    unit = lower(weight, moment, drift, asymmetry=1)
    assert torch.equal(result(unit), result(lower(target, moment)))
    term = lower(weight, moment, drift, asymmetry=1, target="sequential")
    assert cost(term, target) < cost(lower(weight, moment), target)


def test_codes_come_back_from_a_written_weight() -> None:
    problem = Problem(noise(4, 16), factorize(correlated_moment(16)).upper)
    for order in ("natural", "reversed"):
        search = LatticeSearch(QuipLower(order=order, sweeps=1), problem)
        scale, codes = search.run()
        points = lattice_points(codes).flatten(1) * scale
        again = search.codes(points.flip(1) if order == "reversed" else points, scale)
        assert torch.equal(again, codes)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidCheckpoint, match="the scale of the layer does not fit fp16"):
        lower(noise(4, 16) * 1e6, correlated_moment(16))
    with pytest.raises(InvalidCheckpoint, match="too small"):
        lower(noise(4, 16) * 1e-9, correlated_moment(16))
    with pytest.raises(ValidationError, match="asymmetry is 0"):
        QuipLower(target="sequential")
