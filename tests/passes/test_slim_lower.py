"""slim-lower: reference errors, the published loop and search, its options, what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidCheckpoint
from qdc.ir.annotations import Factor
from qdc.ir.verify import verify
from qdc.numerics.feedback import residual_cost
from qdc.numerics.importance import importance
from qdc.passes.abmp_allocate import AbmpAllocate
from qdc.passes.pack import Pack
from qdc.passes.slim_lower import Slim, SlimLower
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.units import correlated_moment, make_unit, noise, put_statistics

COLUMNS = 160
PLAIN: dict[str, Any] = {"feedback": False, "compensation": "none"}
RELEASE: dict[str, Any] = {"rounds": 0, "sweeps": 0, "one_bit": "release"}


def lower(
    weight: Tensor, orders: tuple[int, ...], moment: Tensor | None = None, **options: Any
) -> Unit:
    unit = make_unit(SlimLower.model_validate(options), {"q": weight})
    put_statistics(unit, torch.eye(weight.shape[1]) if moment is None else moment, orders)
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="slim-lower")
    return unit


def result(unit: Unit) -> Tensor:
    note = unit.graph.require("q", Slim)
    return note.codec.dense(note.working(unit.tensors))


def cost(unit: Unit, weight: Tensor) -> float:
    upper = unit.get(unit.graph.require("q", Factor).tensor)
    return residual_cost(weight, result(unit), upper)


@pytest.mark.parametrize(
    ("bits", "options", "error"),
    [
        (2, {"steps": 0}, 0.256),  # minimum to maximum
        (2, {"shrink": 0.2, "norm": 2}, 0.136),  # the range of least squares
        (3, {"steps": 0}, 0.047),
        (1, {"one_bit": "release"}, 0.359),
    ],
)
def test_errors_on_gaussian_weights(bits: int, options: dict[str, Any], error: float) -> None:
    weight = noise(256, 1024)
    found = result(lower(weight, (bits,) * 8, **PLAIN, **options))
    relative = float((weight - found).square().sum() / weight.square().sum())
    assert relative == pytest.approx(error, rel=0.03)


def test_the_published_range_is_between_them() -> None:
    weight = noise(64, 512)

    def error(**options: Any) -> float:
        found = result(lower(weight, (2,) * 4, **PLAIN, **options))
        return float((weight - found).abs().pow(2.4).sum())

    whole, published, wide = error(steps=0), error(), error(shrink=0.3)
    assert wide < published < whole
    assert published > 0.7 * whole  # tau stays in 0.9 .. 1.1


def grid_of(block: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of each row, tau by tau, as the publication says."""
    taus = [1.0]
    taus += [1 - 0.1 * k / 50 for k in range(1, 51)] + [1 + 0.1 * k / 50 for k in range(1, 51)]
    best = np.full(len(block), np.inf)
    scale, zero = np.zeros(len(block)), np.zeros(len(block))
    for tau in taus:
        low, high = tau * np.minimum(block.min(1), 0), tau * np.maximum(block.max(1), 0)
        s = ((high - low) / (2**bits - 1)).astype(np.float16).astype(np.float64)
        z = np.clip(np.round(-low / s), 0, 2**bits - 1)
        codes = np.clip(np.round(block / s[:, None] + z[:, None]), 0, 2**bits - 1)
        loss = (np.abs(s[:, None] * (codes - z[:, None]) - block) ** 2.4).sum(1)
        scale, zero = np.where(loss < best, s, scale), np.where(loss < best, z, zero)
        best = np.minimum(best, loss)
    return scale, zero


def test_is_the_published_search_and_loop() -> None:
    weight, moment, orders = noise(6, COLUMNS, 1), correlated_moment(COLUMNS), (3, 2)
    unit = lower(weight, orders, moment, **RELEASE)
    u = unit.get(unit.graph.require("q", Factor).tensor).double().numpy()
    rest, expected = weight.double().numpy().copy(), np.zeros((6, COLUMNS))
    for j in range(COLUMNS):
        if j % 128 == 0:
            bits = orders[j // 128]
            scale, zero = grid_of(rest[:, j : j + 128].astype(np.float32).astype(float), bits)
        codes = np.clip(np.round(rest[:, j] / scale + zero), 0, 2**bits - 1)
        expected[:, j] = scale * (codes - zero)
        rest[:, j + 1 :] -= np.outer((rest[:, j] - expected[:, j]) / u[j, j], u[j, j + 1 :])
    np.testing.assert_allclose(result(unit).numpy(), expected, rtol=1e-3, atol=1e-5)


def test_one_bit_as_released_is_mean_and_mean_size() -> None:
    weight = noise(6, 128) + 0.02
    found = result(lower(weight, (1,), **PLAIN, one_bit="release"))
    mean, size = weight.mean(1, keepdim=True), weight.abs().mean(1, keepdim=True)
    for end, sign in ((found.amax(1, keepdim=True), 1), (found.amin(1, keepdim=True), -1)):
        # The zero point is stored in sixteenths of a step, which is twice the size.
        assert ((end - (mean + sign * size)).abs() <= 1.01 * size / 16).all()
    searched = result(lower(weight, (1,), **PLAIN, norm=2))
    assert (weight - searched).square().sum() <= (weight - found).square().sum()


def test_a_row_far_on_one_side_of_zero_is_kept_by_one_bit() -> None:
    weight = 1 + noise(3, 64)
    weight[0], weight[1] = 0.5, -weight[1]
    found = result(lower(weight, (1,), **PLAIN))
    assert torch.equal(found[0], weight[0])
    assert (weight - found).square().sum() < 0.1 * weight.square().sum()


def test_ours_costs_less_than_published_in_the_same_bytes() -> None:
    for seed in range(2):
        weight, moment = noise(24, 256, seed), correlated_moment(256, seed)
        for orders in ((2, 2), (1, 3), (3, 1)):
            published = lower(weight, orders, moment, **RELEASE)
            ours = lower(weight, orders, moment, shrink=0.3)
            assert cost(ours, weight) < 0.95 * cost(published, weight)
            assert cost(published, weight) < cost(
                lower(weight, orders, moment, **PLAIN, one_bit="release"), weight
            )
            notes = [unit.graph.require("q", Slim).codec for unit in (published, ours)]
            assert notes[0] == notes[1]


def test_salient_weights_count_more_on_demand() -> None:
    weight, moment = noise(12, 128), correlated_moment(128)
    plain = SlimLower()
    upper = lower(weight, (2,), moment).graph.require("q", Factor).tensor
    triangle = lower(weight, (2,), moment).get(upper)
    assert plain.emphasis(weight, triangle) is None
    scores = importance(weight, triangle).double()
    for deviation, dims in (("block", (0, 1)), ("row", (1,))):
        step = SlimLower.model_validate({"salient_weight": 4, "sigma": 3, "deviation": deviation})
        emphasis = step.emphasis(weight, triangle)
        limit = scores.mean(dims, keepdim=True) + 3 * scores.std(dims, keepdim=True)
        assert emphasis is not None
        assert torch.equal(emphasis == 4, scores > limit)
        assert set(emphasis.flatten().tolist()) == {1, 4}
    options: dict[str, Any] = {"salient_weight": 30, "sigma": 1.0, **PLAIN}
    other = result(lower(weight, (2,), moment, **options, shrink=0.3))
    usual = result(lower(weight, (2,), moment, shrink=0.3, **PLAIN))
    salient = scores > scores.mean() + scores.std()
    before, after = (((weight - w).abs() ** 2.4)[salient].sum() for w in (usual, other))
    assert after < before


@pytest.mark.parametrize("columns", [576, 160, 32, 12, 1])
def test_edges(columns: int) -> None:
    blocks = -(-columns // 128)
    orders = tuple((2, 1, 3, 2, 4)[:blocks])
    moment = correlated_moment(columns)
    moment[0], moment[:, 0] = 0, 0
    for rows in (1, 5):
        weight = noise(rows, columns)
        weight[:, 128:256] = 0
        unit = lower(weight, orders, moment)
        found = result(unit)
        assert not found[:, 0].any()
        assert found.isfinite().all()
        pack = make_unit(Pack(), {"q": weight})
        note = unit.graph.require("q", Slim)
        note.codec.pack_exactly(note.working(unit.tensors), "q")
        assert pack.step.name == "pack"


def test_it_takes_the_orders_of_other_allocators() -> None:
    weight = noise(8, 512)
    unit = make_unit(SlimLower(), {"q": weight})
    put_statistics(unit, correlated_moment(512), (4, 1, 3, 2))
    unit.step.run(unit)
    assert unit.graph.require("q", Slim).codec.bits == (4, 1, 3, 2)
    assert AbmpAllocate.provides[0] in SlimLower.requires


def test_weights_that_no_scale_holds_are_refused() -> None:
    with pytest.raises(InvalidCheckpoint, match="a scale of the block is not finite in fp16"):
        lower(noise(2, 32) * 1e7, (2,))


@pytest.mark.parametrize(
    "options",
    [
        "steps=0 norm=2",
        "steps=0 shrink=0.5",
        "steps=0 salient-weight=2",
        "sigma=3",
        "deviation=row",
        "feedback=false rounds=1",
        "target=sequential",
        "shrink=0",
        "grow=0.5",
    ],
)
def test_what_would_be_ignored_is_refused(options: str) -> None:
    registry = standard_registry()
    wrong = f"stages(calibrate-mcs,sensitivity,abmp-allocate,slim-lower{{{options}}}),pack"
    with pytest.raises((ValidationError, ValueError, Exception), match=r"read|says how|greater"):
        build_plan(wrong, registry)
