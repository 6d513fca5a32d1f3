"""Curvatures of outputs: what guide notes of them, and what is lowered and allocated by them."""

import math
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidPipeline, MissingAnnotation, NotFinite
from qdc.ir.annotations import Factor
from qdc.ir.curvature import OutputCurvature
from qdc.numerics.factor import factorize
from qdc.numerics.two_sided import TwoSidedMetric
from qdc.passes.predict_error import PredictedError, PredictError
from qdc.passes.trellis_lower import TrellisCoded, TrellisLower
from qdc.passkit.curvatures import add_curvatures, tell_flat
from qdc.passkit.outputs import own_output_factor
from qdc.pipeline.builder import build_plan
from qdc.pipeline.passbase import Pass
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import standard_registry
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import Spy, run_passes
from tests.support.families import CASES, write_family
from tests.support.looks import Looked, looked
from tests.support.lowering import lower_by_curvature
from tests.support.outlooks import forecast_tiny
from tests.support.slopes import drawn_slopes
from tests.support.units import correlated_moment, make_unit, noise

SAMPLES = "samples=8 length=16 pack=within batch=3"


def curved(model: Path, text: Path, folder: Path, waiting: str = "") -> Looked:
    guided = f"guide{{{SAMPLES} outputs=true{waiting}}}"
    passes = f"{guided},calibrate-mcs{{{SAMPLES} token-weights=guided}},look,rtn-lower,pack"
    return looked(model, text, folder, passes, OutputCurvature)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, dtype=torch.float32, vocab=2048)


@pytest.mark.parametrize("waiting", ["", " waiting=4"])
def test_a_curvature_is_the_second_moment_of_derivatives(
    waiting: str, model: Path, text: Path, tmp_path: Path
) -> None:
    look = curved(model, text, tmp_path, waiting)
    (tokens,) = look.tokens
    for ending in ("blocks.0.q_proj", "blocks.1.ff_out"):
        (name,) = (n for n in look.notes[OutputCurvature] if n.endswith(ending))
        slopes, count = drawn_slopes(model, tokens, [name])
        flat = slopes[name].flatten(0, 1)
        wanted = flat.T @ flat
        found, note = look.notes[OutputCurvature][name]
        torch.testing.assert_close(found, wanted / count, rtol=1e-3, atol=1e-4 * float(found.max()))
        assert note.positions == count
        assert note.size == pytest.approx(float(found.diagonal().mean()), rel=1e-5)


def test_they_wait_in_files_of_their_own(model: Path, text: Path, tmp_path: Path) -> None:
    class Held(Spy):
        """What the table holds in memory behind guide."""

        name: ClassVar[str] = "held"
        requires = (OutputCurvature,)
        names: ClassVar[list[str]] = []

        def run(self, unit: Unit) -> None:
            self.names[:] = [name for name, _ in unit.tensors.held()]

    known = standard_registry()
    known.add(Held)
    passes = (
        f"guide{{{SAMPLES} outputs=true}},held,stages(calibrate-cross{{{SAMPLES} "
        "token-weights=guided},sensitivity,trellis-lower{outputs=guided height=16}),pack"
    )
    run_passes(model, tmp_path / "run", known, passes, calibration=text)
    assert not [name for name in Held.names if "curvature" in name]


def test_experts_have_curvatures_too(text: Path, tmp_path: Path) -> None:
    experts = write_family(tmp_path / "experts", CASES["llada-moe"], dtype=torch.float32)
    found = curved(experts, text, tmp_path / "run").notes[OutputCurvature]
    sizes = [note.size for name, (_, note) in found.items() if ".experts." in name]
    assert sizes
    assert any(sizes)


def test_layers_that_no_prediction_hangs_on_are_told() -> None:
    unit = make_unit(TrellisLower(), {"q": noise(4, 8), "k": noise(4, 8)})
    add_curvatures(unit, {"q": torch.zeros(4, 4), "k": torch.eye(4)}, 0, 3)
    tell_flat(unit)
    (remark,) = unit.remarks
    assert (remark.kind, remark.layer) == ("missed", "q")


def test_a_curvature_that_is_not_finite_is_refused() -> None:
    unit = make_unit(TrellisLower(), {"q": noise(4, 8)})
    with pytest.raises(NotFinite, match="by more than fp32 can hold") as caught:
        add_curvatures(unit, {"q": torch.full((4, 4), math.inf)}, 0, 3)
    assert caught.value.where == ("%q",)
    assert caught.value.help


def lower(step: Pass, weight: Tensor, curvature: Tensor, moment: Tensor) -> Unit:
    orders = (2,) * -(-moment.shape[0] // 128)
    return lower_by_curvature(step, weight, curvature, moment, orders)


def cost(unit: Unit, weight: Tensor, curvature: Tensor) -> float:
    upper = unit.get(unit.graph.require("q", Factor).tensor)
    note = unit.graph.require("q", TrellisCoded)
    dense = note.codec.dense(note.working(unit.tensors))
    return TwoSidedMetric(factorize(curvature, 0.01).upper, upper).loss(weight, dense)


@pytest.mark.parametrize(
    "tile", [{"height": 16}, {"height": 8, "width": 8}, {"height": 16, "block": 3}]
)
def test_guided_outputs_cost_less(tile: dict[str, Any]) -> None:
    weight, curvature, moment = noise(64, 48), correlated_moment(64, seed=1), correlated_moment(48)
    options: dict[str, Any] = {"window": 8, **tile}
    alike = lower(TrellisLower(**options, sweeps=2), weight, curvature, moment)
    guided = lower(TrellisLower(**options, outputs="guided"), weight, curvature, moment)
    assert cost(guided, weight, curvature) < 0.7 * cost(alike, weight, curvature)


def test_a_refit_of_the_scale_costs_no_more() -> None:
    weight, curvature, moment = noise(64, 48), correlated_moment(64, seed=1), correlated_moment(48)
    options: dict[str, Any] = {"window": 8, "height": 16, "outputs": "guided", "scale": 1.6}
    found = [
        cost(lower(TrellisLower(**options, rounds=r), weight, curvature, moment), weight, curvature)
        for r in (0, 1)
    ]
    assert found[1] < found[0]


@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (5, 12), (70, 9), (64, 40)])
@pytest.mark.parametrize("width", [1, 4])
def test_any_shape_is_encoded(rows: int, columns: int, width: int) -> None:
    weight, curvature = noise(rows, columns), correlated_moment(rows, seed=1)
    step = TrellisLower(window=8, outputs="guided", height=16, width=width, rounds=1)
    note = lower(step, weight, curvature, correlated_moment(columns)).graph.require(
        "q", TrellisCoded
    )
    assert note.error is not None
    assert note.error < 0.5


def test_an_output_that_nothing_hangs_on_costs_only_its_damping() -> None:
    curvature = correlated_moment(64, seed=1)
    curvature[5], curvature[:, 5] = 0, 0
    unit = lower(TrellisLower(window=8), noise(64, 48), curvature, correlated_moment(48))
    upper = own_output_factor(unit, unit.graph["q"], 0.1)
    found = torch.linalg.inv(upper.double().T @ upper.double()).diagonal()
    mean = float(curvature.diagonal().mean())
    assert float(found[5]) == pytest.approx(0.1 * mean, rel=1e-3)
    torch.testing.assert_close(
        found[:5], curvature.diagonal()[:5].double() + 0.1 * mean, rtol=1e-3, atol=1e-3
    )


def test_where_no_prediction_hangs_on_outputs_they_count_alike() -> None:
    weight, nothing, moment = noise(64, 48), torch.zeros(64, 64), correlated_moment(48)
    options: dict[str, Any] = {"window": 8, "height": 16}
    dense = []
    for outputs in ("guided", "alike"):
        unit = lower(TrellisLower(**options, outputs=outputs), weight, nothing, moment)
        note = unit.graph.require("q", TrellisCoded)
        dense.append(note.codec.dense(note.working(unit.tensors)))
    torch.testing.assert_close(dense[0], dense[1])
    none = lower(PredictError(outputs="guided"), weight, nothing, moment)
    assert none.graph.require("q", PredictedError).error == 0


@pytest.mark.parametrize("height", [64, 128])
def test_what_is_predicted_is_what_guided_codes_cost(height: int) -> None:
    weight, moment = noise(128, 48), correlated_moment(48)
    curvature = correlated_moment(128, seed=1)
    options: dict[str, Any] = {"outputs": "guided", "height": height, "output_damp": 0.01}
    step = TrellisLower(window=8, bits=2, block=1, **options)
    measured = cost(lower(step, weight, curvature, moment), weight, curvature) / 2
    unit = lower(PredictError(**options), weight, curvature, moment)
    predicted = unit.graph.require("q", PredictedError)
    assert measured == pytest.approx(0.0786 * predicted.error, rel=0.35)


LOWERED = "trellis-lower{bits=allocated outputs=guided}"
GUIDED = "guide{outputs=true},calibrate-mcs{token-weights=guided},sensitivity"


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ("guide{outputs=true},calibrate-mcs{token-weights=guided}", "no pass behind it reads"),
        (
            "guide{outputs=true},guide{outputs=true},calibrate-mcs,sensitivity,trellis-lower{outputs="
            "guided}",
            "no pass behind it reads",
        ),
        (
            "guide{outputs=true},guide,calibrate-mcs,sensitivity,trellis-lower{outputs=guided}",
            "no calibration behind it asks for the weights",
        ),
        (
            f"{GUIDED},predict-error{{outputs=guided}},allocate-rates{{weights=energy}},{LOWERED}",
            "cannot compare what predict-error notes",
        ),
        (
            f"{GUIDED},predict-error,allocate-rates{{weights=guided}},{LOWERED}",
            "write weights=loss or energy to allocate-rates",
        ),
        (
            f"{GUIDED},predict-error{{outputs=guided}},"
            "allocate-rates{weights=guided count=layers},trellis-lower{bits=allocated}",
            "counts other tiles than trellis-lower{outputs=alike} stores",
        ),
        (
            f"{GUIDED},predict-error{{outputs=guided height=16}},allocate-rates{{weights=guided}},"
            f"{LOWERED}",
            "predict-error and trellis-lower are not given the same height",
        ),
        (
            f"{GUIDED},predict-error{{outputs=guided}},allocate-rates{{weights=guided}},"
            "trellis-lower{bits=allocated outputs=guided output-damp=0.2}",
            "predict-error and trellis-lower are not given the same output-damp",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(passes: str, said: str) -> None:
    with pytest.raises(InvalidPipeline, match=re.escape(said)) as caught:
        check_order(build_plan(passes, standard_registry()))
    assert caught.value


def test_a_curvature_is_read_beyond_a_guide_that_notes_none() -> None:
    lowered = "sensitivity,trellis-lower{outputs=guided}"
    passes = f"guide{{outputs=true}},guide,calibrate-mcs{{token-weights=guided}},{lowered}"
    check_order(build_plan(passes, standard_registry()))


def test_a_curvature_is_asked_for() -> None:
    passes = "guide,calibrate-mcs{token-weights=guided},sensitivity,trellis-lower{outputs=guided}"
    with pytest.raises(MissingAnnotation, match="trellis-lower reads @curvature") as caught:
        check_order(build_plan(passes, standard_registry()))
    assert "qdc passes guide" in str(caught.value)


@pytest.mark.parametrize("options", [{"sweeps": 1}, {"search": True}, {"compensation": "none"}])
def test_options_that_guided_outputs_do_not_read_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="outputs=guided does not read"):
        TrellisLower.model_validate({"outputs": "guided", **options})
    with pytest.raises(ValidationError, match="outputs=alike does not read output-damp"):
        TrellisLower.model_validate({"output_damp": 0.5})


def test_a_second_refit_that_guided_outputs_would_not_make_is_refused() -> None:
    TrellisLower.model_validate({"outputs": "guided", "rounds": 1})
    with pytest.raises(ValidationError, match="rounds is 0 or 1"):
        TrellisLower.model_validate({"outputs": "guided", "rounds": 2})


def test_it_is_foreseen(model: Path) -> None:
    passes = (
        "guide{outputs=true},calibrate-mcs,sensitivity,predict-error{outputs=guided},"
        "allocate-rates{weights=guided},stages(calibrate-cross{token-weights=guided},sensitivity,"
        "trellis-lower{bits=allocated outputs=guided}),pack"
    )
    assert not forecast_tiny(model, passes).unknown
