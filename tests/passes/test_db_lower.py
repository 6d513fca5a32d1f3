"""db-lower: the published grid, its refits, both signs, its error."""

import itertools

import pytest
import torch

from qdc.numerics.planestart import even_levels
from qdc.passes.db_lower import DbLower
from tests.support.lowered import error, lowered
from tests.support.units import correlated_moment, noise


def alone(**options: object) -> DbLower:
    """The pass as published: no error moves anywhere."""
    return DbLower.model_validate({"compensation": "none", "feedback": False, **options})


def test_without_refits_it_is_the_published_grid_and_rule() -> None:
    weight = noise(6, 128)
    dense = lowered(alone(iterations=0), weight, torch.eye(128))[1]
    step = (weight.abs().amax(1, keepdim=True) / 2).half().float()
    first, second = (2 * step).half().float(), -step
    one = weight > (first + second) / 2
    # The second plane is set where what is left lies nearer to its scale than to 0.
    two = -(weight - first * one - second / 2) > 0
    expected = first * one + second * two
    assert torch.equal(dense, expected)
    assert torch.equal(even_levels(weight, 2).round(weight), expected)


def test_error_on_gaussian_weights() -> None:
    """A free pair reaches 0.139 over wide groups, more where a group is short and fits itself."""
    weight, plain = noise(32, 1024), torch.eye(1024)
    wide = error(alone(group=1024), weight, plain)
    assert wide == pytest.approx(0.139, rel=0.03)
    narrow = [
        error(alone(mirror=mirror), weight[:, :256], torch.eye(256)) for mirror in (False, True)
    ]
    assert narrow[1] < narrow[0] < 0.139
    first = error(alone(iterations=0), weight[:, :256], torch.eye(256))
    assert first > 0.151  # the best that its start form can do


def test_refits_never_lose() -> None:
    weight, plain = noise(8, 128), torch.eye(128)
    errors = [error(alone(iterations=n), weight, plain) for n in (0, 1, 3, 20)]
    assert all(after <= before for before, after in itertools.pairwise(errors))


def test_shared_is_better_on_correlated_inputs() -> None:
    weight, moment = noise(48, 256), correlated_moment(256)
    published = error(alone(), weight, moment)
    exact = error(DbLower(feedback=False), weight, moment)
    shared = error(DbLower(mirror=True, rounds=5), weight, moment)
    assert shared < exact < published


def test_bytes() -> None:
    note, _ = lowered(DbLower(), noise(8, 512), torch.eye(512))
    assert 8 * note.codec.nbytes / (8 * 512) == 2.25
    assert note.codec.payload_bits == 2 * 8 * 512


@pytest.mark.parametrize(("rows", "columns"), [(1, 160), (3, 32), (2, 576)])
def test_ragged_sizes_and_zero_blocks(rows: int, columns: int) -> None:
    weight = noise(rows, columns)
    weight[:, -16:] = 0
    dense = lowered(DbLower(mirror=True), weight, correlated_moment(columns))[1]
    assert dense.shape == weight.shape
    assert dense.isfinite().all()


def test_a_row_that_leans_to_one_side_is_met_by_the_mirrored_grid() -> None:
    weight = -torch.tensor([[2.0, 1.0, 0.0, -1.0] * 8])
    plain = torch.eye(32)
    assert error(alone(mirror=True), weight, plain) == 0
    assert error(alone(iterations=0), weight, plain) > 0
