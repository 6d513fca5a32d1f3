"""predict-error: foretells what rotated codes leave, in any coordinates."""

import pytest
import torch
from torch import Tensor

from qdc.ir.annotations import Factor
from qdc.ir.verify import verify
from qdc.numerics.feedback import residual_cost
from qdc.numerics.hadamard import RandomHadamard
from qdc.passes.predict_error import PredictedError, PredictError
from qdc.passes.trellis_lower import TrellisCoded, TrellisLower
from qdc.pipeline.passbase import Pass
from qdc.streaming.unit import Unit
from tests.support.units import correlated_moment, make_unit, noise, put_statistics


def ran(step: Pass, weight: Tensor, moment: Tensor) -> Unit:
    unit = make_unit(step, {"q": weight})
    put_statistics(unit, moment, (2,) * -(-moment.shape[0] // 128))
    step.run(unit)
    verify(unit.graph, unit.tensors, after=step.name)
    return unit


def predicted(weight: Tensor, moment: Tensor) -> PredictedError:
    return ran(PredictError(), weight, moment).graph.require("q", PredictedError)


@pytest.mark.parametrize(("bits", "distortion"), [(1.5, 0.154), (2, 0.0786)])
def test_it_foretells_the_error_of_trellis_codes(bits: float, distortion: float) -> None:
    weight, moment = noise(64, 96), correlated_moment(96)
    step = TrellisLower(window=8, bits=bits, sweeps=1)
    unit = ran(step, weight, moment)
    note = unit.graph.require("q", TrellisCoded)
    upper = unit.get(unit.graph.require("q", Factor).tensor)
    error = residual_cost(weight, note.codec.dense(note.working(unit.tensors)), upper)
    assert error == pytest.approx(distortion * predicted(weight, moment).error, rel=0.35)


def test_it_is_about_the_same_in_other_coordinates() -> None:
    weight, moment = noise(16, 48), correlated_moment(48)
    turn = RandomHadamard.of(48, 3)
    found = predicted(turn.forward(weight), turn.forward(turn.forward(moment).T))
    expected = predicted(weight, moment)
    assert found.error == pytest.approx(expected.error, rel=0.15)
    assert found.energy == pytest.approx(expected.energy, rel=1e-3)


def test_what_no_input_reads_counts_nowhere() -> None:
    weight, moment = noise(16, 48), correlated_moment(48)
    moment[:, 7] = moment[7] = 0
    changed = weight.clone()
    changed[:, 7] = 100
    assert predicted(changed, moment) == predicted(weight, moment)
    nothing = predicted(weight, torch.zeros(48, 48))
    assert (nothing.error, nothing.energy) == (0, 0)
