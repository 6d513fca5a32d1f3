"""gguf-lower: types by option and place, feedback, drift, and layers whose blocks are not whole."""

from typing import Any

import pytest
import torch
from torch import Tensor

from qdc.errors import InvalidPipeline, UnsupportedModel
from qdc.gguf.names import naming_role
from qdc.ir.annotations import Factor
from qdc.ir.cross import CrossMoment
from qdc.ir.verify import verify
from qdc.numerics.feedback import residual_cost
from qdc.numerics.ggmltypes import TYPES
from qdc.passes.gguf_lower import GgmlBlocks, GgufLower
from qdc.passes.pack import Pack
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.units import annotate_all, correlated_moment, make_unit, noise, put_statistics

TYPES_OF_LAYERS = ("Q2_K_S", "Q3_K", "TQ2_0", "Q2_0", "Q1_0")


def lower(weight: Tensor, moment: Tensor, cross: Tensor | None = None, **options: Any) -> Unit:
    unit = make_unit(GgufLower.model_validate(options), {"q": weight})
    put_statistics(unit, moment, (2,) * -(-moment.shape[0] // 128))
    if cross is not None:
        annotate_all(unit, CrossMoment(tensor=unit.put("x:cross-moment", cross), drift=0.1))
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="gguf-lower")
    return unit


def result(unit: Unit) -> Tensor:
    note = unit.graph.require("q", GgmlBlocks)
    return note.codec.dense(note.working(unit.tensors))


def cost(unit: Unit, weight: Tensor) -> float:
    return residual_cost(weight, result(unit), unit.get(unit.graph.require("q", Factor).tensor))


@pytest.mark.parametrize("name", TYPES_OF_LAYERS)
def test_the_loop_is_never_worse_than_rounding(name: str) -> None:
    weight, moment = noise(6, 512), correlated_moment(512)
    plain = lower(weight, moment, type=name, feedback=False, compensation="none")
    unit = lower(weight, moment, type=name)
    stored = name.removesuffix("_S")
    assert unit.graph.require("q", GgmlBlocks).codec.type == stored
    assert cost(unit, weight) < 0.8 * cost(plain, weight)
    Pack().run(unit)
    verify(unit.graph, unit.tensors, after="pack")


def test_a_drift_is_taken_back() -> None:
    weight, moment = noise(4, 256), correlated_moment(256)
    drifted = moment @ torch.diag(torch.linspace(0.7, 1.1, 256)) - moment
    without, back = lower(weight, moment), lower(weight, moment, cross=drifted, asymmetry=1)
    assert not torch.equal(result(without), result(back))


@pytest.mark.parametrize(
    ("family", "path", "kind"),
    [
        ("llada", "model.transformer.blocks.3.v_proj", "Q3_K"),
        ("llada", "model.transformer.blocks.3.ff_out", "Q3_K"),
        ("llada", "model.transformer.blocks.3.q_proj", "Q2_K"),
        ("llada", "model.transformer.blocks.3.ff_proj", "Q2_K"),
        ("dream", "model.layers.11.self_attn.o_proj", "Q3_K"),
        ("dream", "model.layers.11.mlp.up_proj", "Q2_K"),
        ("llada-moe", "model.layers.0.mlp.experts.7.down_proj", "Q3_K"),
        ("llada-moe", "model.layers.0.mlp.experts.7.up_proj", "Q2_K"),
        ("toy", "model.v_proj", "Q2_K"),
    ],
)
def test_the_mix_is_that_of_llamacpp(family: str, path: str, kind: str) -> None:
    unit = make_unit(GgufLower(), {"q": noise(2, 256)})
    graph = unit.graph
    node = graph["q"].model_copy(update={"path": path})
    facts = graph.model.model_copy(update={"family": family})
    object.__setattr__(graph.structure, "model", facts)
    assert GgufLower().wanted(graph, node) == kind
    assert (naming_role(family, path) != "") == (kind == "Q3_K")


def test_broken_blocks_fall_back_and_are_counted() -> None:
    unit = lower(noise(3, 160), correlated_moment(160))
    assert unit.graph.require("q", GgmlBlocks).codec.type == "Q8_0"
    (missed,) = (remark for remark in unit.remarks if remark.kind == "missed")
    assert "160 columns are no blocks of 256: Q8_0, not Q2_K" in str(missed)


def test_rows_that_fit_no_block_are_refused() -> None:
    unit = make_unit(GgufLower(), {"q": noise(3, 40)})
    with pytest.raises(UnsupportedModel, match="no whole blocks of Q2_K"):
        unit.step.check(unit.graph)


def test_zero_weights_and_dead_inputs_stay_zero() -> None:
    moment = correlated_moment(256)
    moment[7] = moment[:, 7] = 0
    weight = noise(3, 256)
    weight[1] = 0
    found = result(lower(weight, moment))
    assert bool((found[1] == 0).all())
    assert found.shape == (3, 256)
    assert TYPES["Q2_K"].nbytes == 84


def test_the_preset_hands_its_options_on() -> None:
    registry = standard_registry()
    plan = build_plan("gguf{type=TQ2_0 rounds=1}", registry)
    assert str(plan) == (
        "gguf-vocab,stages(calibrate-cross,sensitivity{damp=0.1},"
        "gguf-lower{rounds=1 asymmetry=1 type=TQ2_0}),pack"
    )
    with pytest.raises(InvalidPipeline, match="gguf-lower has no option"):
        build_plan("gguf{group=64}", registry)
    with pytest.raises(InvalidPipeline, match="takes no options"):
        build_plan("gguf-q3{rounds=1}", registry)
