"""trellis-lower: against LDLQ by its definition, its options, what it stores and refuses."""

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
from qdc.passes.trellis_lower import TrellisCoded, TrellisLower
from qdc.streaming.unit import Unit
from tests.support.units import annotate_all, correlated_moment, make_unit, noise, put_statistics


def lower(weight: Tensor, moment: Tensor, cross: Tensor | None = None, **options: Any) -> Unit:
    unit = make_unit(TrellisLower.model_validate({"window": 8, **options}), {"q": weight})
    put_statistics(unit, moment, (2,) * -(-moment.shape[0] // 128))
    if cross is not None:
        annotate_all(unit, CrossMoment(tensor=unit.put("x:cross-moment", cross), drift=0.1))
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="trellis-lower")
    return unit


def result(unit: Unit) -> Tensor:
    note = unit.graph.require("q", TrellisCoded)
    return note.codec.dense(note.working(unit.tensors))


def cost(unit: Unit, weight: Tensor) -> float:
    return residual_cost(weight, result(unit), unit.get(unit.graph.require("q", Factor).tensor))


def test_is_ldlq_of_blocks_of_columns_from_the_last_to_the_first() -> None:
    weight, moment = noise(64, 24), correlated_moment(24)
    unit = lower(weight, moment, block=8)
    inputs = RandomHadamard.of(24, random_seed(0, "inputs", "x24"))
    outputs = RandomHadamard.of(64, random_seed(0, "outputs", "q"))
    rotated = outputs.forward(inputs.forward(weight.double()).T).T
    damped = moment.double() + 0.01 * moment.diagonal().double().mean() * torch.eye(24)
    root = torch.linalg.cholesky(inputs.forward(inputs.forward(damped).T))
    blocks = root * torch.kron(torch.eye(3), torch.ones(8, 8)).double()
    unit_lower = root @ torch.linalg.inv(blocks)
    note = unit.graph.require("q", TrellisCoded)
    scale = float(note.working(unit.tensors)["scale"])
    trellis = note.codec.trellis(torch.device("cpu"))
    found = torch.zeros_like(rotated)
    for k in (16, 8, 0):
        error = (rotated - found)[:, k + 8 :]
        place = rotated[:, k : k + 8] + error @ unit_lower[k + 8 :, k : k + 8]
        states = trellis.search((place / scale).float(), torch.ones(64, 8))
        found[:, k : k + 8] = trellis.levels[states].double() * scale
    expected = inputs.inverse(outputs.inverse(found.T).T)
    torch.testing.assert_close(result(unit).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [1, 4])
def test_sweeps_never_raise_the_loss(width: int) -> None:
    weight, moment = noise(64, 40), correlated_moment(40)
    found = [cost(lower(weight, moment, sweeps=s, width=width), weight) for s in range(4)]
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(found))
    assert found[-1] < 0.98 * found[0]


@pytest.mark.parametrize(("bits", "expected"), [(1, 0.30), (2, 0.0795), (3, 0.0216)])
def test_reaches_the_error_of_its_code_on_gaussian_weights(bits: float, expected: float) -> None:
    weight = noise(128, 64)
    unit = lower(weight, torch.eye(64), bits=bits, rounds=1, scale=1)
    error = float((result(unit) - weight).square().sum() / weight.square().sum())
    assert error == pytest.approx(expected, rel=0.03)


def test_bits_are_any_eighth() -> None:
    weight, moment = noise(64, 32), correlated_moment(32)
    errors = [cost(lower(weight, moment, bits=b), weight) for b in (1, 1.375, 1.5, 2.5, 4)]
    assert all(after < before for before, after in pairwise(errors))
    codec = lower(weight, moment, bits=1.375).graph.require("q", TrellisCoded).codec
    assert codec.nbytes == 1.375 * 64 * 32 / 8 + 10


def test_our_loop_is_better_than_the_published_one() -> None:
    weight, moment = noise(64, 48), correlated_moment(48)
    published = cost(lower(weight, moment, height=16, width=16, block=16, code="1mad"), weight)
    ours = cost(lower(weight, moment, sweeps=2, search=True, rounds=1), weight)
    assert ours < 0.9 * published


def test_options_change_what_they_say() -> None:
    weight, moment = noise(64, 48), correlated_moment(48)
    plain = result(lower(weight, moment))
    variants: list[dict[str, Any]] = [
        {"seed": 1},
        {"compensation": "none"},
        {"rounds": 1},
        {"scale": 1.0},
        {"window": 10},
        {"code": "1mad"},
        {"height": 32},
        {"width": 2},
        {"block": 4},
        {"sweeps": 1},
        {"bits": 2.5},
    ]
    for options in variants:
        assert not torch.equal(result(lower(weight, moment, **options)), plain), options
    assert torch.equal(result(lower(weight, moment)), plain)
    far: dict[str, Any] = {"scale": 0.3, "rounds": 0}
    assert cost(lower(weight, moment, search=True, **far), weight) != cost(
        lower(weight, moment, **far), weight
    )


def test_scales_are_tried_on_some_rows_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moment = noise(128, 24), correlated_moment(24)
    options: dict[str, Any] = {"height": 32, "search": True, "scale": 1.05}
    whole = lower(weight, moment, **options)
    monkeypatch.setattr("qdc.passes.trellis_lower.TRIED", 64)
    assert torch.equal(result(lower(weight, moment, **options)), result(whole))
    plain = lower(weight, moment, height=32, scale=1.05)
    assert cost(whole, weight) < cost(plain, weight)


@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (1, 8), (5, 12), (130, 9)])
@pytest.mark.parametrize("width", [1, 4])
def test_any_shape_is_encoded(rows: int, columns: int, width: int) -> None:
    weight = noise(rows, columns)
    unit = lower(weight, correlated_moment(columns), width=width, search=True, rounds=1, sweeps=1)
    note = unit.graph.require("q", TrellisCoded)
    assert note.error is not None
    assert note.error < 0.3
    note.codec.pack_exactly(note.working(unit.tensors), "q")


def test_dead_inputs_and_empty_weights() -> None:
    moment = correlated_moment(32)
    moment[3], moment[:, 3] = 0, 0
    weight = noise(64, 32)
    weight[:, 3] = 1000
    error = lower(weight, moment).graph.require("q", TrellisCoded).error
    assert error is not None
    assert error < 0.2
    empty = lower(torch.zeros(4, 32), moment, search=True, sweeps=1, rounds=1)
    assert torch.equal(result(empty), torch.zeros(4, 32))


def test_drift_is_taken_back_before_the_rotation() -> None:
    weight, moment = noise(64, 40), correlated_moment(40)
    upper, drift = factorize(moment).upper, noise(40, 40, 5) / 4
    target = drifted_target(weight, drift, upper, 1)
    unit = lower(weight, moment, drift, asymmetry=1)
    assert torch.equal(result(unit), result(lower(target, moment)))
    term = lower(weight, moment, drift, asymmetry=1, target="sequential")
    assert cost(term, target) < cost(lower(weight, moment), target)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidCheckpoint, match="the scale of the layer does not fit fp16"):
        lower(noise(64, 8) * 1e6, correlated_moment(8))
    with pytest.raises(InvalidCheckpoint, match="too small"):
        lower(noise(64, 8) * 1e-9, correlated_moment(8))
    for options, message in (
        ({"height": 4096, "width": 2, "block": 2}, "at most 4096"),
        ({"width": 3}, "no whole number of tiles"),
        ({"target": "sequential"}, "asymmetry is 0"),
    ):
        with pytest.raises(ValidationError, match=message):
            TrellisLower.model_validate(options)


@pytest.mark.parametrize("bits", ["alocated", 1.3, 0.5, 5, "nan", None])
def test_bits_that_cannot_be_have_one_message(bits: object) -> None:
    with pytest.raises(ValidationError, match="or allocated") as caught:
        TrellisLower.model_validate({"bits": bits})
    assert caught.value.error_count() == 1
