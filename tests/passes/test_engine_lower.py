"""engine-lower: feedback and refits on grids of engines, their form, polish, the presets."""

from typing import Any

import pytest
import torch
from torch import Tensor

from qdc.errors import InvalidArtifact, InvalidPipeline
from qdc.format.uniformgrid import UniformGrid
from qdc.ir.annotations import Factor
from qdc.ir.cross import CrossMoment
from qdc.ir.verify import verify
from qdc.numerics.feedback import residual_cost
from qdc.passes.engine_lower import Engine, EngineLower
from qdc.passes.pack import Pack
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.units import annotate_all, correlated_moment, make_unit, noise, put_statistics


def lower(weight: Tensor, moment: Tensor, cross: Tensor | None = None, **options: Any) -> Unit:
    unit = make_unit(EngineLower.model_validate(options), {"q": weight})
    put_statistics(unit, moment, (2,) * -(-moment.shape[0] // 128))
    if cross is not None:
        annotate_all(unit, CrossMoment(tensor=unit.put("x:cross-moment", cross), drift=0.1))
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="engine-lower")
    return unit


def working(unit: Unit) -> dict[str, Tensor]:
    return unit.graph.require("q", Engine).working(unit.tensors)


def cost(unit: Unit, weight: Tensor) -> float:
    note, factor = unit.graph.require("q", Engine), unit.graph.require("q", Factor)
    return residual_cost(weight, note.codec.dense(working(unit)), unit.get(factor.tensor))


@pytest.mark.parametrize("bits", [2, 4])
def test_the_loop_is_never_worse_than_rounding(bits: int) -> None:
    weight, moment = noise(6, 256), correlated_moment(256)
    plain = lower(weight, moment, bits=bits, feedback=False, compensation="none")
    unit = lower(weight, moment, bits=bits)
    assert cost(unit, weight) < 0.8 * cost(plain, weight)
    found = working(unit)
    middle = 1 << (bits - 1)
    assert set(found["zero"].flatten().tolist()) <= {middle - 1, middle}
    scale = found["scale"].float()
    assert torch.equal(scale.bfloat16().float(), scale)
    Pack().run(unit)
    verify(unit.graph, unit.tensors, after="pack")


def test_zero_points_of_any_code_help_rows_on_one_side_of_zero() -> None:
    weight, moment = noise(6, 128).abs(), correlated_moment(128)
    central, free = (lower(weight, moment, zeros=zeros) for zeros in ("central", "any"))
    assert cost(free, weight) < 0.7 * cost(central, weight)
    assert set(working(free)["zero"].flatten().tolist()) <= {0, 1}


def test_a_drift_is_taken_back() -> None:
    weight, moment = noise(4, 128), correlated_moment(128)
    drifted = moment @ torch.diag(torch.linspace(0.7, 1.1, 128)) - moment
    without, back = lower(weight, moment), lower(weight, moment, cross=drifted, asymmetry=1)
    assert not torch.equal(working(without)["codes"], working(back)["codes"])


def test_broken_groups_are_stored_and_told() -> None:
    unit = lower(noise(3, 160), correlated_moment(160))
    (missed,) = (remark for remark in unit.remarks if remark.kind == "missed")
    assert "160 columns are no whole groups of 128: no engine loads it" in str(missed)
    assert unit.graph.require("q", Engine).codec.groups == 2


def test_polish_keeps_scales_short_and_readers_refuse_long_ones() -> None:
    weight = noise(4, 128)
    unit = lower(weight, correlated_moment(128))
    codec, started = unit.graph.require("q", Engine).codec, working(unit)
    layer = codec.relax(started, weight)
    with torch.no_grad():
        layer.get_parameter("scale").mul_(1.01)
    moved = layer.working()
    scale = moved["scale"].float()
    assert not torch.equal(scale, started["scale"].float())
    assert torch.equal(scale.bfloat16().float(), scale)
    stored = codec.pack_exactly(moved, "q")
    assert codec.model_dump()["scales"] == "bf16"
    assert "scales" not in UniformGrid(rows=1, columns=8, group=8, bits=2).model_dump()
    with pytest.raises(InvalidArtifact, match="none of bf16"):
        codec.check({**stored, "scale": stored["scale"] * 1.001}, "q")


def test_the_presets_are_of_the_loop_and_hand_options_on() -> None:
    registry = standard_registry()
    assert str(build_plan("engine{group=64}", registry)) == (
        "stages(calibrate-cross,sensitivity{damp=0.1},engine-lower{asymmetry=1 group=64}),"
        "polish,pack"
    )
    assert "bits=4" in str(build_plan("engine-4bit", registry))
    with pytest.raises(InvalidPipeline, match="engine-lower has no option"):
        build_plan("engine{type=Q2_K}", registry)
