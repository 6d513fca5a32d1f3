"""allocate-rates: never above the budget, about the optimum below it, every byte counted."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import safe_open

from qdc.errors import InvalidGraph, InvalidPipeline, MissingAnnotation, OrderOutOfRange
from qdc.ir.costs import LossSensitivity
from qdc.ir.verify import verify
from qdc.numerics.trellis import FALL
from qdc.numerics.unseen import unseen_as_usual
from qdc.passes.allocate_rates import AllocateRates, Rate
from qdc.passes.predict_error import PredictedError
from qdc.passes.trellis_lower import TrellisLower
from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.units import correlated_moment, make_unit, noise, put_statistics

MEASURED = "calibrate-mcs,sensitivity,predict-error"
LOWERED = "stages(calibrate-mcs,sensitivity,trellis-lower{window=8 bits=allocated}),pack"


def allocated(errors: dict[str, float], rows: tuple[int, ...], **options: Any) -> Unit:
    """Layers of 128 columns, with these errors at a distortion of 1 and equal weights."""
    step = AllocateRates.model_validate(options)
    unit = make_unit(
        step, {n: torch.zeros(count, 128) for n, count in zip(errors, rows, strict=True)}
    )
    for node in unit.layers():
        unit.annotate(node, PredictedError(error=errors[node.name], energy=2))
        unit.annotate(node, LossSensitivity(rise=0.5, error=1, positions=9))
    step.run(unit)
    verify(unit.graph, unit.tensors, after=step.name)
    return unit


def rates(unit: Unit) -> list[int]:
    return [unit.graph.require(node.name, Rate).eighths for node in unit.layers()]


def test_a_layer_of_four_times_the_error_gets_about_one_bit_more() -> None:
    unit = allocated({"q": 1, "k": 1 / FALL}, (128, 128))
    assert rates(unit) == [12, 20]
    assert list(map(str, unit.remarks)) == [
        "passed allocate-rates %q from=2 to=1.5",
        "passed allocate-rates %k from=2 to=2.5",
    ]


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(1, 300)), min_size=1, max_size=3),
    st.floats(1, 4).map(lambda bits: round(bits, 3)),
    st.sampled_from(["codes", "layers"]),
)
def test_no_better_rates_leave_a_whole_step_unused(
    layers: list[tuple[float, int]], budget: float, count: str
) -> None:
    names = "qkv"[: len(layers)]
    errors = {name: error for name, (error, _) in zip(names, layers, strict=True)}
    rows = tuple(each for _, each in layers)
    step = AllocateRates.model_validate({"budget": budget, "count": count})
    try:
        unit = allocated(errors, rows, budget=budget, count=count)
    except OrderOutOfRange:
        assert count == "layers"  # scales and seeds come on top of the lowest rate
        assert budget < 2
        return
    nodes, found = list(unit.layers()), rates(unit)
    sizes = [step.sizes(node).tolist() for node in nodes]
    room = step.room(nodes, []).units

    def taken(chosen: tuple[int, ...] | list[int]) -> int:
        return sum(size[rate - 8] for size, rate in zip(sizes, chosen, strict=True))

    def cost(chosen: tuple[int, ...] | list[int]) -> float:
        pairs = zip(errors.values(), chosen, strict=True)
        return sum(error * float(FALL ** (rate / 8)) for error, rate in pairs)

    assert taken(found) <= room
    # One step of the largest layer less is the most that a greedy choice can lose.
    step_size = max(size[rate - 7] - size[rate - 8] for size in sizes for rate in range(8, 32))
    for chosen in product(range(8, 33, 3), repeat=len(nodes)):
        if taken(chosen) <= room - step_size:
            assert cost(found) <= cost(chosen) * (1 + 1e-9)


@pytest.mark.parametrize("budget", [4.0, 4.1])
def test_effective_bits_of_everything_are_proved_by_the_files(
    budget: float, tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path / "m", d_model=64, mlp_hidden_size=136, dtype=torch.float32)
    out = tmp_path / "out"
    allocate = f"allocate-rates{{budget={budget} count=effective weights=energy}}"
    report = compile_tiny(model, out, f"quantize-vocab{{bits=4}},{MEASURED},{allocate},{LOWERED}")
    stored = weights = 0
    for path in out.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                kind = name.rpartition(".")[2]
                if kind != "weight":
                    stored += file.get_tensor(name).nbytes
    weights = sum(layer.rows * layer.columns for layer in report.layers) + 2 * 2048 * 64
    assert budget - 0.1 < 8 * stored / weights <= budget
    assert len({layer.sign_bits for layer in report.layers}) > 1


def test_a_lowering_that_stores_more_than_was_counted_on_is_refused() -> None:
    unit = make_unit(TrellisLower(window=8, bits="allocated"), {"q": noise(64, 64)})
    put_statistics(unit, correlated_moment(64), (2,))
    (node,) = unit.layers()
    unit.annotate(node, Rate(eighths=16, stored_bytes=1000))
    with pytest.raises(InvalidGraph, match="takes 1,034 bytes, its allocation counts on 1,000"):
        unit.step.run(unit)


def test_the_lowest_rate_may_be_too_much() -> None:
    with pytest.raises(OrderOutOfRange, match=r"cannot be had: with all layers at 1\.5 it is 1\.5"):
        allocated({"q": 1}, (64,), budget=1.2, lowest=1.5)


@pytest.mark.parametrize(("bits", "advised"), [(8, True), (4.25, False)])
def test_fewer_bits_are_advised_to_a_vocabulary_that_has_more(bits: float, advised: bool) -> None:
    step = AllocateRates(budget=1, count="effective")
    nodes = list(make_unit(step, {"q": torch.zeros(64, 128)}).layers())
    room = step.room(nodes, [(4096, int(4096 * bits / 8))])
    with pytest.raises(OrderOutOfRange) as caught:
        step.equal(np.stack([step.sizes(node) for node in nodes]), room, nodes)
    said = "less than 8.00 bits: quantize-vocab{bits=4}"
    assert (said in caught.value.help) == advised


@pytest.mark.parametrize("count", ["codes", "layers"])
def test_a_budget_that_cannot_be_is_refused_before_anything_runs(count: str) -> None:
    step = AllocateRates.model_validate({"budget": 0.9, "count": count})
    unit = make_unit(step, {"q": torch.zeros(64, 128)})
    with pytest.raises(OrderOutOfRange, match=r"0\.9 bits a weight cannot be had"):
        step.check(unit.graph)
    AllocateRates(budget=1.5).check(unit.graph)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 1.3}, "bits are in eighths"),
        ({"lowest": 3, "highest": 2}, "lowest 3 is above highest 2"),
        ({"highest": 5}, "less than or equal to 4"),
        ({"height": 64}, "count=codes does not read height"),
        ({"width": 4}, "count=codes does not read width"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AllocateRates.model_validate(options)


def test_passes_may_follow_the_lowering() -> None:
    after = LOWERED.replace(",pack", ",polish,pack")
    passes = f"{MEASURED},allocate-rates{{weights=energy count=layers}},{after}"
    check_order(build_plan(passes, standard_registry()), final=(), backend="reference")


@pytest.mark.parametrize(
    ("passes", "error", "message"),
    [
        (
            f"{MEASURED},allocate-rates{{weights=energy}},rtn-lower,pack",
            InvalidPipeline,
            "which rtn-lower does not",
        ),
        (f"{MEASURED},allocate-rates,{LOWERED}", MissingAnnotation, "@loss"),
        (
            f"{MEASURED},allocate-rates{{weights=energy count=layers}},"
            + LOWERED.replace("window=8", "window=8 height=64"),
            InvalidPipeline,
            "counts tiles of the usual height",
        ),
        (LOWERED, MissingAnnotation, "@rate"),
    ],
)
def test_pipelines_that_cannot_be_are_refused(
    passes: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_order(build_plan(passes, standard_registry()), final=(), backend="reference")


def test_layers_that_no_prediction_hung_on_cost_what_is_usual() -> None:
    costs = np.array([[8.0, 2.0], [0.0, 0.0], [4.0, 1.0]])
    found = unseen_as_usual(costs, np.array([2, 5, 4]))
    assert found.tolist() == [[8, 2], [10, 2.5], [4, 1]]
    assert not unseen_as_usual(0 * costs, np.array([2, 5, 4])).any()
