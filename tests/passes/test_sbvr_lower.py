"""sbvr-lower: its errors, both searches, lines and their bytes, what the shared loop gains."""

import pytest
import torch

from qdc.format.sharedtable import SharedTable
from qdc.passes.bpdq_lower import BpdqLower
from qdc.passes.sbvr_lower import SbvrLower
from tests.support.lowered import error, lowered
from tests.support.units import correlated_moment, make_unit, noise


def published_with(**options: object) -> SbvrLower:
    """The pass without feedback, and these options."""
    return SbvrLower.model_validate({"compensation": "diag", "feedback": False, **options})


def test_error_on_gaussian_weights() -> None:
    """A pair that all groups share reaches 0.139; with lines to choose from groups fit better."""
    weight, plain = noise(64, 256), torch.eye(256)
    one = error(published_with(lines=1, refits=20), weight, plain)
    assert one == pytest.approx(0.139, rel=0.03)
    many = error(published_with(lines=64), weight, plain)
    offset = error(published_with(lines=64, offset=True), weight, plain)
    assert offset < many < 0.95 * one
    # One offset for all is no worse than the four best levels of a normal distribution.
    four = error(published_with(lines=1, refits=20, offset=True), weight, plain)
    assert four == pytest.approx(0.1175, rel=0.03)


def test_shared_is_better_on_correlated_inputs() -> None:
    weight, moment = noise(48, 256), correlated_moment(256)
    published = error(published_with(lines=64), weight, moment)
    shared = error(SbvrLower(lines=64, offset=True, rounds=5), weight, moment)
    assert shared < 0.6 * published


@pytest.mark.parametrize("search", ["fitted", "published"])
def test_weights_on_lines_of_a_table_are_met(search: str) -> None:
    """Two pairs of coefficients, exact in fp16: every group lies on the levels of one of them."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (6, 2, 64), generator=generator).float()
    pairs = torch.tensor([[0.5, -0.25], [1.0, -0.75]])
    weight = (pairs[torch.arange(6) % 2][:, :, None] * bits).sum(1)
    step = published_with(group=32, search=search)
    # The search proposes evenly spaced numbers, which lie beside these.
    assert error(step, weight, torch.eye(64)) < (1e-6 if search == "fitted" else 2e-3)


def test_published_search_adds_lines_as_groups_need_them() -> None:
    weight, plain = noise(8, 64), torch.eye(64)
    step = published_with(group=32, search="published")
    note, dense = lowered(step, weight, plain)
    assert isinstance(note.codec, SharedTable)
    # Ten lines before any is taken again, and none that no group asked for.
    assert 10 <= note.codec.lines <= 16
    free = error(BpdqLower(group=32, feedback=False, start="alternating"), weight, plain)
    assert free < error(step, weight, plain) < 1.6 * free
    few = published_with(group=32, search="published", lines=3)
    note, again = lowered(few, weight, plain)
    assert isinstance(note.codec, SharedTable)
    assert note.codec.lines == 3
    assert not torch.equal(again, dense)


def test_no_more_lines_than_groups() -> None:
    unit = make_unit(SbvrLower(), {"q": noise(3, 160)})
    (node,) = unit.layers()
    codec = SbvrLower().forecast_codec(unit, node)
    assert codec is not None
    assert codec.lines == 6
    assert SbvrLower(search="published").forecast_codec(unit, node) is None
    note, _ = lowered(SbvrLower(), noise(3, 160), correlated_moment(160))
    assert note.codec == codec


@pytest.mark.parametrize(("rows", "columns"), [(1, 160), (3, 32), (2, 200)])
@pytest.mark.parametrize("offset", [True, False])
def test_ragged_sizes_and_zero_blocks(rows: int, columns: int, offset: bool) -> None:
    weight, moment = noise(rows, columns), correlated_moment(columns)
    weight[:, -16:] = 0
    step = SbvrLower(offset=offset, lines=4)
    dense = lowered(step, weight, moment)[1]
    assert dense.shape == weight.shape
    assert dense.isfinite().all()
    assert torch.equal(lowered(step, weight, moment)[1], dense)


def test_a_seed_that_torch_would_cut_off_is_refused() -> None:
    with pytest.raises(ValueError, match="seed"):
        SbvrLower(seed=1 << 32)


@pytest.mark.parametrize("wrong", [{"offset": True}, {"refits": 3}])
def test_what_the_published_search_does_not_read_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="search=published"):
        SbvrLower.model_validate({"search": "published", **wrong})
