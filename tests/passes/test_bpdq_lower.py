"""bpdq-lower: its error, its bytes, that rounds and the shared loop never lose, ragged sizes."""

import pytest
import torch

from qdc.errors import InvalidCheckpoint
from qdc.numerics.error import relative_output_error
from qdc.passes.bpdq_lower import Bpdq, BpdqLower
from qdc.passes.gptq_lower import GptqLower
from tests.support.lowered import error, lowered
from tests.support.units import correlated_moment, noise

PUBLISHED = {"rounds": 10, "sweeps": 0}


def test_error_on_gaussian_weights() -> None:
    """Two planes with an offset hold four free levels of a normal distribution: 0.110."""
    weight, plain = noise(128, 256), torch.eye(256)
    published = BpdqLower.model_validate(PUBLISHED)
    found = error(published, weight, plain)
    assert found == pytest.approx(0.110, rel=0.03)
    assert found < error(GptqLower.model_validate({"group": 128, "search": "clip"}), weight, plain)
    assert error(BpdqLower(start="alternating", rounds=5), weight, plain) < found


def test_shared_is_better_on_correlated_inputs() -> None:
    weight, moment = noise(48, 256), correlated_moment(256)
    published = error(BpdqLower.model_validate(PUBLISHED), weight, moment)
    shared = error(BpdqLower(start="alternating", rounds=5), weight, moment)
    unaware = error(BpdqLower(feedback=False), weight, moment)
    assert shared < published < 0.6 * unaware


def test_more_planes_are_better_and_cost_what_they_say() -> None:
    weight, plain = noise(32, 256), torch.eye(256)
    errors = []
    for planes in (1, 2, 3, 4):
        note, dense = lowered(BpdqLower(planes=planes), weight, plain)
        errors.append(float((weight - dense).square().sum() / weight.square().sum()))
        bits = 8 * note.codec.nbytes / weight.numel()
        assert bits == planes + 16 * (planes + 1) / 128
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.02


@pytest.mark.parametrize(("rows", "columns", "group"), [(1, 160, 128), (3, 32, 128), (2, 200, 64)])
@pytest.mark.parametrize("start", ["bits", "alternating"])
def test_ragged_sizes_zero_blocks_and_dead_columns(
    rows: int, columns: int, group: int, start: str
) -> None:
    weight, moment = noise(rows, columns), correlated_moment(columns)
    weight[:, :16] = 0
    moment[20, :] = moment[:, 20] = 0
    step = BpdqLower.model_validate({"group": group, "start": start})
    note, dense = lowered(step, weight, moment)
    assert isinstance(note, Bpdq)
    assert dense.shape == weight.shape
    assert relative_output_error(weight, dense, moment) < 0.2
    again = lowered(step, weight, moment)[1]
    assert torch.equal(again, dense)


def test_weights_beyond_fp16_name_the_layer() -> None:
    with pytest.raises(InvalidCheckpoint, match="do not fit fp16") as caught:
        lowered(BpdqLower(), noise(2, 16) * 1e6, torch.eye(16))
    assert caught.value.where == ("%q",)


def test_planes_that_coincide_are_told_apart_by_the_least_ridge() -> None:
    """A row of two values has equal planes: without a ridge its system has no solution."""
    weight = torch.where(noise(2, 16) > 0, 1.0, -1.0)
    _, dense = lowered(BpdqLower(ridge=1e-12), weight, torch.eye(16))
    assert torch.equal(dense, weight)


@pytest.mark.parametrize("wrong", [{"group": 12}, {"planes": 5}, {"ridge": 0}, {"start": "zero"}])
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        BpdqLower.model_validate(wrong)
