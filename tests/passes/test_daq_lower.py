"""daq-lower: every order, compensation, shared factors, what overflows."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from qdc.errors import InvalidCheckpoint
from qdc.ir.annotations import Factor
from qdc.numerics.blocks import block_slices
from qdc.numerics.error import relative_output_error
from qdc.numerics.feedback import residual_cost
from qdc.numerics.importance import importance, outlier_weight
from qdc.numerics.multibinary import dense, fit
from qdc.passes.daq_lower import Daq, DaqLower
from qdc.passes.pack import Pack
from qdc.streaming.unit import Unit
from tests.support.lowering import lower, result
from tests.support.units import correlated_moment, make_unit, noise, put_statistics

COLUMNS = 160


def test_more_orders_give_less_error() -> None:
    weight, moment = noise(12, COLUMNS), correlated_moment(COLUMNS)
    errors = []
    for order in (1, 2, 3, 4):
        unit = lower({"q": weight}, moment, (order, order))
        note = unit.graph.require("q", Daq)
        assert note.codec.orders == (order, order)
        found = relative_output_error(weight, result(unit), moment)
        assert note.error == pytest.approx(found, rel=1e-12)
        errors.append(found)
    assert all(lower > 1.5 * higher for lower, higher in pairwise(errors))


def test_orders_may_differ_by_block() -> None:
    unit = lower({"q": noise(6, COLUMNS)}, correlated_moment(COLUMNS), (1, 4))
    codec = unit.graph.require("q", Daq).codec
    assert codec.payload_bits == 6 * (128 + 4 * 32)
    first, second = result(unit)[:, :128].abs().double(), result(unit)[:, 128:].abs().double()
    assert int(torch.linalg.matrix_rank(first, rtol=1e-6)) == 1
    assert int(torch.linalg.matrix_rank(second, rtol=1e-6)) == 6


def test_compensation_helps_where_inputs_are_correlated() -> None:
    weight, moment = noise(12, 384), correlated_moment(384)
    errors = {}
    for rule in ("exact", "diag", "none"):
        unit = lower({"q": weight}, moment, (2, 2, 2), compensation=rule)
        errors[rule] = unit.graph.require("q", Daq).error
    assert errors["exact"] is not None
    assert errors["none"] is not None
    assert errors["diag"] not in (errors["exact"], errors["none"])
    assert errors["exact"] < 0.8 * errors["none"]


def test_compensation_changes_nothing_where_inputs_are_independent() -> None:
    weight = noise(8, 384)
    moment = torch.diag(torch.linspace(0.5, 2, 384))
    rules = ("exact", "diag", "none")
    exact, diag, none = (
        result(lower({"q": weight}, moment, (1, 2, 3), compensation=rule)) for rule in rules
    )
    assert torch.equal(exact, diag)
    assert torch.equal(exact, none)


def test_without_compensation_a_block_is_the_fit_of_its_own_weights() -> None:
    weight, moment = noise(5, COLUMNS), correlated_moment(COLUMNS)
    unit = lower({"q": weight}, moment, (2, 3), compensation="none", sweeps=4, feedback=False)
    upper = unit.get(unit.graph.require("q", Factor).tensor)
    for part, order in zip(block_slices(COLUMNS), (2, 3), strict=True):
        block = weight[:, part].contiguous()
        emphasis = outlier_weight(importance(block, upper[part, part]), 2.0, 3.0)
        fitted, _ = fit(block, order, emphasis, sweeps=4)
        assert torch.equal(result(unit)[:, part], dense(fitted))


def test_layers_that_share_a_factor_do_not_disturb_each_other() -> None:
    moment = correlated_moment(COLUMNS)
    weights = {"q": noise(6, COLUMNS), "k": noise(4, COLUMNS, 1), "v": noise(4, COLUMNS, 2)}
    together = lower(weights, moment.clone(), (1, 3))
    for name, weight in weights.items():
        alone = lower({name: weight.clone()}, moment.clone(), (1, 3))
        assert torch.equal(result(together, name), result(alone, name))
        assert together.graph.require(name, Daq).error == alone.graph.require(name, Daq).error


def test_weights_moment_and_factor_are_left_alone() -> None:
    weights = {"q": noise(6, COLUMNS), "k": noise(4, COLUMNS, 1)}
    moment = correlated_moment(COLUMNS)
    originals = {name: weight.clone() for name, weight in weights.items()}
    unit = make_unit(DaqLower(), weights)
    put_statistics(unit, moment, (2, 2))
    statistics = {name: (tensor, tensor.clone()) for name, tensor in unit.tensors.held()}
    unit.step.run(unit)
    for name, weight in weights.items():
        assert torch.equal(weight, originals[name])
    for tensor, before in statistics.values():
        assert torch.equal(tensor, before)


def test_dead_inputs_cost_nothing() -> None:
    weight, moment = noise(6, COLUMNS), correlated_moment(COLUMNS)
    dead = [5, 140]
    moment[dead] = 0
    moment[:, dead] = 0
    spoilt = weight.clone()
    spoilt[:, dead] = 1e4
    clean, dirty = (lower({"q": w}, moment, (2, 2)) for w in (weight, spoilt))
    assert torch.equal(result(clean), result(dirty))
    assert dirty.graph.require("q", Daq).error == clean.graph.require("q", Daq).error


def test_a_layer_of_zeros_stays_zero() -> None:
    unit = lower({"q": torch.zeros(4, COLUMNS)}, correlated_moment(COLUMNS), (2, 1))
    assert not result(unit).any()
    assert unit.graph.require("q", Daq).error == 0


def test_a_layer_that_no_token_reaches_is_lowered() -> None:
    unit = lower({"q": noise(4, COLUMNS)}, torch.zeros(COLUMNS, COLUMNS), (2, 1))
    assert result(unit).isfinite().all()
    assert unit.graph.require("q", Daq).error == 0


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_packed_is_what_was_fitted(dtype: torch.dtype, feedback: bool, bits: int) -> None:
    weight = noise(6, COLUMNS).to(dtype)
    options = {"feedback": feedback, "scale_bits": bits}
    unit = lower({"q": weight}, correlated_moment(COLUMNS), (2, 3), **options)
    expected = result(unit)
    codec = unit.graph.require("q", Daq).codec
    Pack().run(unit)
    stored = {n.rpartition(".")[2]: t for n, t in unit.tensors.held() if n.startswith("model.q.")}
    assert torch.equal(codec.dense(codec.unpack(stored)), expected)


def cost(unit: Unit, weight: Tensor) -> float:
    """Error of the first block once all later columns have compensated for it."""
    upper = unit.get(unit.graph.require("q", Factor).tensor)[:128, :128]
    return residual_cost(weight[:, :128], result(unit)[:, :128], upper)


def test_each_part_of_the_refinement_pays() -> None:
    weight, moment = noise(24, COLUMNS), correlated_moment(COLUMNS)
    steps: list[dict[str, object]] = [
        {"feedback": False},
        {"rounds": 0, "code_sweeps": 0},
        {"rounds": 2, "code_sweeps": 0},
        {"rounds": 2, "code_sweeps": 2},
    ]
    costs = [cost(lower({"q": weight}, moment, (2, 2), **step), weight) for step in steps]
    assert all(later < 0.97 * earlier for earlier, later in pairwise(costs))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_refined_block_is_never_worse_than_the_fit(seed: int, order: str, bits: int) -> None:
    weight = noise(3, COLUMNS, seed)
    moment = correlated_moment(COLUMNS, seed)
    variants = ({"feedback": False}, {"order": order})
    fitted, refined = (
        cost(lower({"q": weight}, moment, (1, 3), scale_bits=bits, **options), weight)
        for options in variants
    )
    assert refined <= fitted * (1 + 1e-4)


def test_the_order_of_columns_matters_but_is_not_stored() -> None:
    weight = noise(12, COLUMNS)
    moment = correlated_moment(COLUMNS) * torch.linspace(0.1, 3, COLUMNS).outer(
        torch.linspace(0.1, 3, COLUMNS)
    )
    natural, activation = (
        lower({"q": weight}, moment, (2, 2), order=order) for order in ("natural", "activation")
    )
    assert not torch.equal(result(natural), result(activation))
    notes = [unit.graph.require("q", Daq) for unit in (natural, activation)]
    assert notes[0].codec == notes[1].codec
    assert notes[0].suffixes == notes[1].suffixes


def test_scales_of_8_bits_cost_little() -> None:
    weight, moment = noise(24, COLUMNS), correlated_moment(COLUMNS)
    units = [lower({"q": weight}, moment, (2, 2), scale_bits=bits) for bits in (16, 8)]
    notes = [unit.graph.require("q", Daq) for unit in units]
    assert [note.codec.scale_bits for note in notes] == [16, 8]
    assert notes[0].error is not None
    assert notes[1].error is not None
    assert notes[1].error < 1.1 * notes[0].error
    assert notes[1].codec.nbytes < notes[0].codec.nbytes


def test_outliers_and_sweeps_are_noted() -> None:
    weight, moment = noise(8, COLUMNS), correlated_moment(COLUMNS)
    unit = lower({"q": weight}, moment, (2, 2), sweeps=3, tolerance=0)
    note = unit.graph.require("q", Daq)
    assert note.sweeps == 3
    assert 0 < note.outliers < 0.2
    assert str(unit.remarks[0]).startswith("passed daq-lower %q error=")
    plain = lower({"q": weight}, moment, (2, 2), outlier_weight=1)
    assert plain.graph.require("q", Daq).outliers == 0


def test_weights_beyond_fp16_name_every_layer() -> None:
    weights = {"q": noise(4, COLUMNS) * 1e8, "k": noise(4, COLUMNS), "v": noise(4, COLUMNS) * 1e8}
    unit = make_unit(DaqLower(), weights)
    put_statistics(unit, correlated_moment(COLUMNS), (2, 2))
    with pytest.raises(InvalidCheckpoint, match="do not fit fp16 scales") as caught:
        unit.step.run(unit)
    assert caught.value.where == ("%q", "%v")
    assert "65504" in caught.value.help
