"""aqlm-lower: what it stores, its reference error, its options, what it refuses."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidCheckpoint, InvalidPipeline, MissingAnnotation
from qdc.ir.annotations import Factor, Moment
from qdc.ir.cross import CrossMoment
from qdc.ir.verify import verify
from qdc.numerics.error import relative_output_error
from qdc.passes.aqlm_lower import Aqlm, AqlmLower
from qdc.passes.gptq_lower import Gptq, GptqLower
from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.units import annotate_all, correlated_moment, make_unit, noise, put_statistics

SHARED: dict[str, Any] = {
    "damped": True,
    "start": "conditional",
    "update": "solve",
    "feedback": True,
}
SMALL: dict[str, Any] = {"bits": 4, "group": 4}


def lower(
    weights: dict[str, Tensor], moment: Tensor, cross: Tensor | None = None, **options: Any
) -> Unit:
    unit = make_unit(AqlmLower.model_validate(options), weights)
    put_statistics(unit, moment, (2,) * -(-moment.shape[0] // 128))
    if cross is not None:
        annotate_all(unit, CrossMoment(tensor=unit.put("x:cross", cross), drift=0.1))
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="aqlm-lower")
    return unit


def result(unit: Unit, name: str = "q") -> Tensor:
    note = unit.graph.require(name, Aqlm)
    return note.codec.dense(note.working(unit.tensors))


def error(unit: Unit, name: str = "q") -> float:
    found = unit.graph.require(name, Aqlm).error
    assert found is not None
    return found


def test_reference_error_on_gaussian_weights() -> None:
    """Section A11 of the specification: two codebooks of 256 x 8 leave 0.096 of the variance.

    More rounds go to 0.093: the codebooks begin to fit themselves to these few vectors.
    """
    weight = noise(256, 1024)
    unit = lower({"q": weight}, torch.eye(1024), epochs=1, steps=20, cluster_steps=12)
    relative = float((weight - result(unit)).square().sum() / weight.square().sum())
    assert relative == pytest.approx(0.096, rel=0.03)


@pytest.mark.parametrize("columns", [40, 37, 6])
@pytest.mark.parametrize("options", [{}, SHARED])
def test_any_width_and_single_rows(options: dict[str, Any], columns: int) -> None:
    weights = {"q": noise(24, columns), "k": noise(1, columns, 1)}
    unit = lower(weights, correlated_moment(columns), **SMALL, **options)
    for name, weight in weights.items():
        note = unit.graph.require(name, Aqlm)
        assert result(unit, name).shape == weight.shape
        assert error(unit, name) < 0.5
        assert note.codec.entries == min(16, len(weight) * -(-columns // 4))
        note.codec.pack_exactly(note.working(unit.tensors), name)


def test_as_many_entries_as_vectors_hold_the_layer_itself() -> None:
    weight = noise(24, 40)
    unit = lower({"q": weight}, correlated_moment(40), bits=16, codebooks=1, epochs=0)
    note = unit.graph.require("q", Aqlm)
    working = note.working(unit.tensors)
    assert (note.codec.entries, working["codes"].dtype) == (24 * 5, torch.int32)
    torch.testing.assert_close(result(unit), weight, rtol=2e-3, atol=1e-6)
    note.codec.pack_exactly(working, "q")


def test_is_better_than_rounding_columns_at_fewer_bits_of_scales() -> None:
    weight, moment = noise(128, 64), correlated_moment(64)
    rounded = make_unit(GptqLower(group=64, search="clip", zero="packed"), {"q": weight})
    put_statistics(rounded, moment, (2,))
    rounded.step.run(rounded)
    plain = rounded.graph.require("q", Gptq).error
    assert plain is not None
    assert error(lower({"q": weight}, moment, bits=8, group=4, codebooks=1)) < plain


def test_ours_costs_less_than_the_published_on_correlated_inputs() -> None:
    found = dict.fromkeys(("published", "solve", "feedback", "shared"), 0.0)
    variants: dict[str, dict[str, Any]] = {
        "published": {},
        "solve": {"update": "solve"},
        "feedback": {"update": "solve", "feedback": True},
        "shared": SHARED | {"damped": False},
    }
    for seed in range(2):
        weight, moment = noise(64, 48, seed), correlated_moment(48, seed)
        for name in found:
            options = SMALL | variants[name] | {"tolerance": 0.002}
            found[name] += error(lower({"q": weight}, moment, **options))
    assert found["solve"] < 1.02 * found["published"]
    assert found["feedback"] < 0.95 * found["solve"]
    assert found["shared"] < 0.9 * found["published"]


def test_more_epochs_and_wider_beams_help_in_the_mean() -> None:
    found = dict.fromkeys((0, 1, 6), 0.0)
    wide = 0.0
    for seed in range(2):
        weight, moment = noise(48, 40, seed), correlated_moment(40, seed)
        for epochs in found:
            found[epochs] += error(lower({"q": weight}, moment, epochs=epochs, **SMALL))
        wide += error(lower({"q": weight}, moment, epochs=6, beam=8, **SMALL))
    values = list(found.values())
    assert values == sorted(values, reverse=True)
    assert wide < found[6]


def test_is_deterministic_and_seeded() -> None:
    weight, moment = noise(32, 40), correlated_moment(40)
    first = result(lower({"q": weight}, moment, **SMALL))
    assert torch.equal(first, result(lower({"q": weight}, moment, **SMALL)))
    assert not torch.equal(first, result(lower({"q": weight}, moment, seed=1, **SMALL)))


def test_the_drift_of_its_inputs_is_taken_back() -> None:
    weight, moment = noise(48, 40), correlated_moment(40)
    drift = 0.5 * noise(40, 40, 5) @ moment
    still = result(
        lower({"q": weight}, moment, torch.zeros(40, 40), asymmetry=1, **SMALL, **SHARED)
    )
    assert torch.equal(still, result(lower({"q": weight}, moment, **SMALL, **SHARED)))
    moved = lower({"q": weight}, moment, drift, asymmetry=1, **SMALL, **SHARED)
    upper = moved.get(moved.graph.require("q", Factor).tensor)
    wanted = weight + (weight @ drift @ upper.T) @ upper
    errors = [relative_output_error(wanted, dense, moment) for dense in (result(moved), still)]
    assert errors[0] < 0.7 * errors[1]


def test_dead_inputs_and_rows_of_zeros() -> None:
    weight, moment = noise(32, 40), correlated_moment(40)
    weight[3] = 0
    moment[5], moment[:, 5] = 0, 0
    for options in ({}, SHARED):
        dense = result(lower({"q": weight}, moment, **SMALL, **options))
        assert not dense[3].any()
        assert dense.isfinite().all()
        assert float(dense[:, 5].square().mean()) < 0.5 * float(weight[:, 5].square().mean())
    unit = lower({"q": weight}, torch.zeros(40, 40), **SMALL)
    assert not result(unit).any()


def test_weights_that_no_fp16_scale_holds_are_reported_together() -> None:
    weights = {"q": 1e6 * noise(16, 40), "k": noise(16, 40), "v": 1e-9 * noise(16, 40)}
    with pytest.raises(InvalidCheckpoint, match="fp16") as caught:
        lower(weights, correlated_moment(40), **SMALL)
    assert caught.value.where == ("%q", "%v")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update": "solve", "rate": 0.1}, "update=solve does not read rate"),
        ({"epochs": 0, "tolerance": 0.1}, "epochs=0 does not read tolerance"),
        ({"epochs": 0, "beam": 2}, "does not read beam"),
        ({"bits": 1, "beam": 3}, "2 entries"),
        ({"bits": 3}, "bits"),
        ({"group": 0}, "group"),
        ({"seed": 1 << 32}, "seed"),  # torch would take it for 0
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AqlmLower.model_validate(options)


def test_codebooks_larger_than_a_layer_are_refused_before_anything_runs() -> None:
    unit = make_unit(AqlmLower(codebooks=1, bits=16), {"q": noise(64, 40), "k": noise(2, 40)})
    with pytest.raises(InvalidPipeline, match=r"65,536 .* vectors of 8") as caught:
        unit.step.check(unit.graph)
    assert caught.value.where == ("%q", "%k")
    assert "bits=8" in (caught.value.help or "")
    AqlmLower().check(unit.graph)


def test_reads_what_its_options_ask_for() -> None:
    assert AqlmLower().needs() == (Moment,)
    for options in ({"feedback": True}, {"damped": True}, {"start": "conditional"}):
        assert AqlmLower.model_validate(options).needs() == (Moment, Factor)
    assert AqlmLower(asymmetry=1).needs() == (Moment, Factor, CrossMoment)
    plan = build_plan("stages(calibrate-mcs,aqlm-lower{feedback=true}),pack", standard_registry())
    with pytest.raises(MissingAnnotation, match="factor"):
        check_order(plan)
