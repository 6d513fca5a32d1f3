"""sensitivity: shared factors, scores, dead inputs, failures that name every layer."""

import pytest
import torch
from torch import Tensor

from qdc.errors import InvalidCheckpoint, NotPositiveDefinite
from qdc.ir.annotations import Factor, Moment, Salience
from qdc.ir.verify import verify
from qdc.passes.sensitivity import Sensitivity
from qdc.streaming.unit import Unit
from tests.support.units import correlated_moment, make_unit, noise


def measured(
    weights: dict[str, Tensor], moments: dict[int, Tensor], damp: float = 0.01, block: int = 128
) -> Unit:
    """Layers of two stages at most, told apart by their input size."""
    unit = make_unit(Sensitivity(damp=damp, block=block), weights)
    refs = {size: unit.put(f"x{size}:moment", moment) for size, moment in moments.items()}
    for node in unit.layers():
        note = Moment(tensor=refs[node.columns], samples=1, tokens=1, masked=0)
        unit.annotate(node, note)
    return unit


def test_factor_and_scores_are_those_of_the_definition() -> None:
    weights = {"q": noise(6, 160), "k": noise(4, 160, seed=1)}
    moment = correlated_moment(160)
    unit = measured(weights, {160: moment})
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="sensitivity")
    damped = moment.double() + 0.01 * moment.double().diagonal().mean() * torch.eye(160)
    conditional = [float(torch.linalg.inv(damped[j:, j:])[0, 0]) for j in range(160)]
    for name, weight in weights.items():
        score = weight.double().square() / torch.tensor(conditional)
        note = unit.graph.require(name, Salience)
        assert note.widths == (128, 32)
        expected = [float(score[:, :128].sum()), float(score[:, 128:].sum())]
        assert note.blocks == pytest.approx(expected, rel=1e-4)
    factor = unit.get(unit.graph.require("q", Factor).tensor).double()
    torch.testing.assert_close(
        factor.T @ factor @ damped, torch.eye(160).double(), rtol=0, atol=1e-4
    )


def test_layers_of_a_stage_share_one_factor_and_others_do_not() -> None:
    weights = {"q": noise(3, 16), "k": noise(3, 16), "o": noise(3, 24)}
    unit = measured(weights, {16: correlated_moment(16), 24: correlated_moment(24)})
    unit.step.run(unit)
    factors = {name: unit.graph.require(name, Factor).tensor for name in weights}
    assert factors["q"] == factors["k"] != factors["o"]
    assert factors["q"].name == "x16:factor"


def test_the_width_of_a_block_is_an_option() -> None:
    weights, moment = {"q": noise(3, 40)}, correlated_moment(40)
    unit = measured(weights, {40: moment}, block=16)
    unit.step.run(unit)
    wide = measured(weights, {40: moment})
    wide.step.run(wide)
    note = unit.graph.require("q", Salience)
    assert note.widths == (16, 16, 8)
    assert sum(note.blocks) == pytest.approx(sum(wide.graph.require("q", Salience).blocks))


@pytest.mark.parametrize("block", [0, 4, 12, 1 << 17])
def test_a_width_that_no_codec_holds_is_refused(block: int) -> None:
    with pytest.raises(ValueError, match="block"):
        Sensitivity(block=block)


def test_the_moment_is_left_alone() -> None:
    moment = correlated_moment(16)
    before = moment.clone()
    unit = measured({"q": noise(3, 16), "k": noise(3, 16)}, {16: moment})
    unit.step.run(unit)
    assert torch.equal(moment, before)


def test_dead_inputs_are_listed_and_remarked() -> None:
    moment = correlated_moment(16)
    moment[[3, 9]] = 0
    moment[:, [3, 9]] = 0
    unit = measured({"q": noise(3, 16)}, {16: moment})
    unit.step.run(unit)
    assert unit.graph.require("q", Factor).dead == (3, 9)
    (remark,) = unit.remarks
    assert str(remark) == "note sensitivity %q damp=0.01 attempts=1 dead=2"


def test_retries_raise_the_damping_and_are_remarked() -> None:
    moment = torch.eye(16)
    moment[0, 1] = moment[1, 0] = 1.05
    unit = measured({"q": noise(3, 16)}, {16: moment})
    unit.step.run(unit)
    note = unit.graph.require("q", Factor)
    assert note.attempts == 2
    assert note.damp == pytest.approx(0.1)
    assert "attempts=2" in str(unit.remarks[0])


@pytest.mark.parametrize("breakage", ["indefinite", "nan"])
def test_a_failure_names_all_layers_of_all_failed_stages(breakage: str) -> None:
    broken = correlated_moment(16)
    if breakage == "nan":
        broken[2, 2] = float("nan")
    else:
        broken = torch.eye(16) - 1e12 * (torch.ones(16, 16) - torch.eye(16))
    weights = {"q": noise(3, 16), "k": noise(3, 16), "o": noise(3, 24)}
    unit = measured(weights, {16: broken, 24: correlated_moment(24)})
    with pytest.raises(NotPositiveDefinite, match="is not positive definite") as caught:
        unit.step.run(unit)
    assert caught.value.where == ("%q", "%k")
    assert "--samples" in caught.value.help


def test_weights_whose_importance_overflows_are_named() -> None:
    weights = {"q": noise(3, 16) * 1e25, "k": noise(3, 16), "v": noise(3, 16) * 1e25}
    unit = measured(weights, {16: correlated_moment(16)})
    with pytest.raises(InvalidCheckpoint, match="overflows fp32") as caught:
        unit.step.run(unit)
    assert caught.value.where == ("%q", "%v")
