"""daq-lower with the curvature of the loss by a layer's outputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from qdc.ir.activations import RotatedHeads
from qdc.ir.annotations import Factor
from qdc.numerics.factor import factorize
from qdc.numerics.two_sided import TwoSidedMetric
from qdc.passes.daq_lower import Daq, DaqLower
from qdc.passkit.outputs import own_output_factor
from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.lowering import lower_by_curvature, result
from tests.support.outlooks import forecast_tiny
from tests.support.units import correlated_moment, noise


def lower(
    weight: Tensor, curvature: Tensor, moment: Tensor, orders: tuple[int, ...], **options: object
) -> Unit:
    step = DaqLower.model_validate({"outputs": "guided", **options})
    return lower_by_curvature(step, weight, curvature, moment, orders)


def cost(unit: Unit, weight: Tensor, curvature: Tensor) -> float:
    upper = unit.get(unit.graph.require("q", Factor).tensor)
    return TwoSidedMetric(factorize(curvature, 0.01).upper, upper).loss(weight, result(unit))


@pytest.mark.parametrize("orders", [(2, 2), (1, 3)])
def test_guided_outputs_cost_less(orders: tuple[int, ...]) -> None:
    weight, moment = noise(64, 160), correlated_moment(160)
    curvature = correlated_moment(64, seed=1)
    alike = lower(weight, curvature, moment, orders, outputs="alike")
    guided = lower(weight, curvature, moment, orders)
    assert cost(guided, weight, curvature) < 0.7 * cost(alike, weight, curvature)
    assert guided.graph.require("q", Daq).codec == alike.graph.require("q", Daq).codec


@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (5, 12), (70, 9)])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_any_shape_is_lowered(rows: int, columns: int, order: int) -> None:
    moment, curvature = correlated_moment(columns), correlated_moment(rows, seed=1)
    note = lower(noise(rows, columns), curvature, moment, (order,)).graph.require("q", Daq)
    assert note.error is not None
    assert note.error < 0.8


def test_dead_inputs_cost_nothing() -> None:
    weight, moment, dead = noise(6, 160), correlated_moment(160), [5, 140]
    moment[dead] = 0
    moment[:, dead] = 0
    spoilt = weight.clone()
    spoilt[:, dead] = 1e4
    clean, dirty = (
        lower(w, correlated_moment(6, seed=1), moment, (2, 2)) for w in (weight, spoilt)
    )
    assert torch.equal(result(clean), result(dirty))


def test_where_no_prediction_hangs_on_outputs_they_count_alike() -> None:
    weight, moment, nothing = noise(12, 160), correlated_moment(160), torch.zeros(12, 12)
    options: dict[str, Any] = {"rounds": 0, "code_sweeps": 0}
    alike, guided = (
        lower(weight, nothing, moment, (2, 2), outputs=outputs, **options)
        for outputs in ("alike", "guided")
    )
    torch.testing.assert_close(result(guided), result(alike))


def test_a_curvature_goes_with_heads_that_were_rotated() -> None:
    curvature = correlated_moment(32, seed=1)
    unit = lower(noise(32, 16), curvature, correlated_moment(16), (2,))
    heads = RotatedHeads(seed=3, width=16)
    unit.annotate(unit.graph["q"], heads)
    found = own_output_factor(unit, unit.graph["q"], 0.1)
    turn = heads.of(32)
    # Outputs y of the original are y Q of the rotated weight: what costs the same is Q^T A Q.
    slopes = torch.linalg.cholesky(curvature)
    turned = turn.forward(slopes.T).T
    expected = turned @ turned.T + 0.1 * curvature.diagonal().mean() * torch.eye(32)
    torch.testing.assert_close(
        torch.linalg.inv(found.T.double() @ found.double()).float(), expected, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"outputs": "guided", "feedback": False}, "outputs=guided does not read feedback"),
        ({"output_damp": 0.5}, "outputs=alike does not read output-damp"),
    ],
)
def test_options_that_are_not_read_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DaqLower.model_validate(options)


GUIDED = (
    "guide{outputs=true},stages(rotate{fold=heads},calibrate-cross,sensitivity{widths=even},"
    "abmp-allocate,daq-lower{asymmetry=1 outputs=guided}),pack"
)


def test_curvatures_are_read_without_weights_of_tokens() -> None:
    check_order(build_plan(GUIDED, standard_registry()))


def test_a_model_is_lowered_as_foreseen(text: Path, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", d_model=32, mlp_hidden_size=48, vocab=2048)
    report = compile_tiny(model, tmp_path / "out", GUIDED, calibration=text)
    assert report.layers
    assert not forecast_tiny(model, GUIDED).unknown
