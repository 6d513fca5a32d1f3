"""gptq-lower: against a loop over columns, its options, what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidCheckpoint, MissingAnnotation
from qdc.ir.annotations import Factor
from qdc.ir.cross import CrossMoment
from qdc.ir.verify import verify
from qdc.numerics.error import relative_output_error
from qdc.numerics.factor import factorize
from qdc.numerics.feedback import residual_cost
from qdc.numerics.uniform import fit_grid
from qdc.passes.gptq_lower import Gptq, GptqLower
from qdc.passes.pack import Pack
from qdc.passes.rtn_lower import RtnLower
from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.units import annotate_all, correlated_moment, make_unit, noise, put_statistics

COLUMNS = 160


def lower(
    weights: dict[str, Tensor], moment: Tensor, cross: Tensor | None = None, **options: Any
) -> Unit:
    unit = make_unit(GptqLower.model_validate(options), weights)
    put_statistics(unit, moment, (2,) * -(-moment.shape[0] // 128))
    if cross is not None:
        ref = unit.put("x:cross-moment", cross)
        annotate_all(unit, CrossMoment(tensor=ref, drift=0.1))
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="gptq-lower")
    return unit


def result(unit: Unit, name: str = "q") -> Tensor:
    note = unit.graph.require(name, Gptq)
    return note.codec.dense(note.working(unit.tensors))


def cost(unit: Unit, weight: Tensor) -> float:
    upper = unit.get(unit.graph.require("q", Factor).tensor)
    return residual_cost(weight, result(unit), upper)


@pytest.mark.parametrize("zero", ["float", "packed"])
@pytest.mark.parametrize("search", ["minmax", "clip"])
def test_is_the_published_loop(search: str, zero: str) -> None:
    weight, moment = noise(6, 40), correlated_moment(40)
    unit = lower({"q": weight}, moment, group=16, search=search, zero=zero)
    u = unit.get(unit.graph.require("q", Factor).tensor).double()
    rest, expected = weight.double().clone(), torch.zeros(6, 40)
    for j in range(40):
        if j % 16 == 0:
            group = rest[:, j : j + 16].float()
            scale, minimum = fit_grid(group, 2, search, zero)  # type: ignore[arg-type]
        seen = rest[:, j].float()
        expected[:, j] = ((seen - minimum) / scale).round().clamp(0, 3) * scale + minimum
        error = (rest[:, j] - expected[:, j].double()) / u[j, j]
        rest[:, j + 1 :] -= torch.outer(error, u[j, j + 1 :])
    torch.testing.assert_close(result(unit), expected, rtol=1e-3, atol=1e-5)


def test_independent_inputs_are_rounded_to_nearest() -> None:
    weight, moment = noise(6, COLUMNS), torch.diag(torch.linspace(0.5, 2, COLUMNS))
    plain = make_unit(RtnLower(search="clip", group=64), {"q": weight})
    plain.step.run(plain)
    note = plain.graph.annotations("q")["lowered"]
    expected = note.codec.dense(note.working(plain.tensors))  # type: ignore[attr-defined]
    for order in ("natural", "activation"):
        unit = lower({"q": weight}, moment, search="clip", group=64, order=order)
        assert torch.equal(result(unit), expected)


def test_the_options_lower_the_cost_in_the_mean() -> None:
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "clip": {"search": "clip"},
        "narrow": {"search": "clip", "group": 64},
        "swept": {"search": "clip", "group": 64, "sweeps": 2},
        "refitted": {"search": "clip", "group": 64, "sweeps": 2, "rounds": 2},
    }
    found = dict.fromkeys(variants, 0.0)
    for seed in range(3):
        weight, moment = noise(12, COLUMNS, seed), correlated_moment(COLUMNS, seed)
        for name, options in variants.items():
            found[name] += cost(lower({"q": weight}, moment, **options), weight)
    values = list(found.values())
    assert values == sorted(values, reverse=True)
    assert found["refitted"] < 0.9 * found["narrow"]


def test_the_activation_order_changes_codes_and_stores_nothing() -> None:
    weight, moment = noise(12, COLUMNS), correlated_moment(COLUMNS)
    natural = lower({"q": weight}, moment)
    other = lower({"q": weight}, moment, order="activation")
    assert not torch.equal(result(natural), result(other))
    codecs = [unit.graph.require("q", Gptq).codec for unit in (natural, other)]
    assert codecs[0] == codecs[1]
    assert cost(other, weight) < 1.2 * cost(natural, weight)


def test_a_share_of_zero_or_no_drift_is_gptq_bit_for_bit() -> None:
    weight, moment = noise(6, COLUMNS), correlated_moment(COLUMNS)
    drift = 0.1 * noise(COLUMNS, COLUMNS, 5)
    plain = result(lower({"q": weight}, moment))
    assert torch.equal(result(lower({"q": weight}, moment, drift, asymmetry=0)), plain)
    equal = lower({"q": weight}, moment, torch.zeros(COLUMNS, COLUMNS), asymmetry=1)
    assert torch.equal(result(equal), plain)
    whole_target: dict[str, Any] = {"asymmetry": 1, "target": "whole"}
    still = lower({"q": weight}, moment, torch.zeros(COLUMNS, COLUMNS), **whole_target)
    assert torch.equal(result(still), plain)
    other = result(lower({"q": weight}, moment, drift, **whole_target))
    assert not torch.equal(other, plain)
    assert not torch.equal(other, result(lower({"q": weight}, moment, drift, asymmetry=1)))
    quarter, whole = (
        result(lower({"q": weight}, moment, drift, asymmetry=share)) for share in (0.25, 1)
    )
    assert not torch.equal(quarter, plain)
    assert not torch.equal(quarter, whole)


def test_what_an_input_gave_that_is_dead_now_is_taken_back() -> None:
    weight, moment = noise(6, 16), correlated_moment(16)
    moment[3], moment[:, 3] = 0, 0
    drift = torch.zeros(16, 16)
    drift[3, :3] = 0.5 * moment[0, 0]
    options: dict[str, Any] = {"asymmetry": 1, "target": "whole", "bits": 8, "zero": "packed"}
    found = result(lower({"q": weight}, moment, drift, **options))
    assert not found[:, 3].any()
    inverse = factorize(moment).upper.double()
    change = weight[:, 3:4].double() @ drift[3:4].double() @ inverse.T @ inverse
    assert change.abs().max() > 0.1
    wanted = weight.index_fill(1, torch.tensor([3]), 0) + change
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=0.1 * float(change.abs().max()))


def test_the_term_without_a_cross_moment_is_refused_before_anything_runs() -> None:
    registry = standard_registry()
    wrong = "stages(calibrate-mcs,sensitivity,gptq-lower{asymmetry=0.25}),pack"
    with pytest.raises(MissingAnnotation, match="gptq-lower reads @cross-moment"):
        check_order(build_plan(wrong, registry))
    check_order(build_plan(wrong.replace("-mcs", "-cross"), registry))
    check_order(build_plan(wrong.replace("=0.25", "=0"), registry))


def test_dead_inputs_cost_nothing() -> None:
    weight, moment = noise(6, 48), correlated_moment(48)
    dead = [5, 40]
    moment[dead], moment[:, dead] = 0, 0
    loud = weight.clone()
    loud[:, dead] = 1e3
    unit = lower({"q": loud}, moment, group=16)
    assert unit.graph.require("q", Factor).dead == tuple(dead)
    assert torch.equal(result(unit), result(lower({"q": weight}, moment, group=16)))


def test_what_two_bits_hold_comes_back_and_is_stored() -> None:
    # on a grid of quarters, so that nothing depends on how sums are rounded
    values = torch.arange(12 * COLUMNS).reshape(12, COLUMNS) * 7 % 4 / 4 - 0.25
    weights = {"h0.q": values[:4], "h0.k": values[4:]}
    unit = lower(weights, torch.eye(COLUMNS), group=32, zero="packed")
    assert all(unit.graph.require(name, Gptq).error == 0 for name in weights)
    codec = unit.graph.require("h0.q", Gptq).codec
    expected = result(unit, "h0.q")
    Pack().run(unit)
    stored = {
        name.rpartition(".")[2]: tensor
        for name, tensor in unit.tensors.held()
        if name.startswith("model.h0.q.")
    }
    nbytes = sum(tensor.nbytes for tensor in stored.values())
    # 5 groups: 40 bytes of codes, 10 of scales, 10 bits of zero points
    assert nbytes == codec.nbytes == 4 * (40 + 10 + 2)
    assert torch.equal(codec.dense(codec.unpack(stored)), expected)


@pytest.mark.parametrize(
    ("columns", "group", "zero", "bits"),
    [
        (4096, 128, "packed", 2 + 18 / 128),
        (4096, 128, "float", 2.25),
        (4096, 64, "packed", 2.28125),
    ],
)
def test_effective_bits_are_those_of_the_literature(
    columns: int, group: int, zero: str, bits: float
) -> None:
    unit = lower({"q": noise(1, 64)}, torch.eye(64), group=group, zero=zero)
    codec = unit.graph.require("q", Gptq).codec.model_copy(update={"columns": columns})
    assert 8 * codec.nbytes / columns == bits


def test_the_error_is_measured() -> None:
    weight, moment = noise(6, COLUMNS), correlated_moment(COLUMNS)
    unit = lower({"q": weight}, moment)
    expected = relative_output_error(weight, result(unit), moment)
    assert unit.graph.require("q", Gptq).error == pytest.approx(expected, rel=1e-12)
    assert expected > 0


def test_layers_that_share_a_factor_do_not_disturb_each_other() -> None:
    moment = correlated_moment(COLUMNS)
    weights = {"q": noise(6, COLUMNS), "k": noise(4, COLUMNS, 1)}
    together = lower(weights, moment.clone(), sweeps=1, rounds=1)
    for name, weight in weights.items():
        alone = lower({name: weight.clone()}, moment.clone(), sweeps=1, rounds=1)
        assert torch.equal(result(together, name), result(alone, name))


def test_refuses_what_it_would_ignore_and_what_overflows() -> None:
    for kind in (GptqLower, RtnLower):
        with pytest.raises(ValidationError, match="does not read norm"):
            kind.model_validate({"norm": 2.0})
        assert kind.model_validate({"norm": 2.0, "search": "clip"}).options()["norm"] == 2.0
    with pytest.raises(ValidationError, match="asymmetry is 0"):
        GptqLower(target="whole")
    weights = {"q": noise(2, 16) * 1e6, "k": noise(2, 16)}
    with pytest.raises(InvalidCheckpoint, match="weights do not fit fp16 scales") as caught:
        lower(weights, torch.eye(16))
    assert caught.value.where == ("%q",)


def test_results_do_not_depend_on_a_run() -> None:
    weight, moment = noise(6, COLUMNS), correlated_moment(COLUMNS)
    given: dict[str, Any] = {"sweeps": 1, "rounds": 1, "order": "activation", "search": "clip"}
    first, second = (result(lower({"q": weight}, moment, **given)) for _ in range(2))
    np.testing.assert_array_equal(first.numpy(), second.numpy())
