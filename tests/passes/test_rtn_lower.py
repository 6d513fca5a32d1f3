"""rtn-lower: exact small grids, the error, what overflows."""

import pytest
import torch

from qdc.errors import InvalidCheckpoint
from qdc.format.uniformgrid import UniformGrid
from qdc.ir.annotations import Moment
from qdc.ir.verify import verify
from qdc.numerics.error import relative_output_error
from qdc.numerics.uniform import dense_uniform, fit_uniform
from qdc.passes.pack import Pack
from qdc.passes.rtn_lower import Rtn, RtnLower
from qdc.streaming.unit import Unit
from tests.support.units import annotate_all, correlated_moment, make_unit, noise


def steps(rows: int, columns: int) -> torch.Tensor:
    """Weights on a grid of quarters, which two bits hold exactly."""
    values = torch.arange(rows * columns).reshape(rows, columns) * 7 % 4
    return values / 4 - 0.25


def dense(unit: Unit, name: str) -> torch.Tensor:
    note = unit.graph.require(name, Rtn)
    return note.codec.dense(note.working(unit.tensors))


def test_rounds_layers_of_a_ragged_size() -> None:
    unit = make_unit(RtnLower(), {"h0.q": steps(4, 160), "h0.o": steps(8, 128)})
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="rtn-lower")
    assert torch.equal(dense(unit, "h0.q"), steps(4, 160))
    assert torch.equal(dense(unit, "h0.o"), steps(8, 128))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(("columns", "group"), [(40, 16), (128, 128), (130, 64), (5, 8)])
def test_each_group_is_rounded_by_itself(bits: int, columns: int, group: int) -> None:
    weight = noise(3, columns)
    unit = make_unit(RtnLower.model_validate({"bits": bits, "group": group}), {"q": weight})
    unit.step.run(unit)
    parts = [dense_uniform(fit_uniform(p, bits)) for p in torch.split(weight, group, dim=1)]
    assert torch.equal(dense(unit, "q"), torch.cat(parts, dim=1))


def test_the_error_is_noted_where_a_moment_is_at_hand() -> None:
    weight, moment = noise(6, 40), correlated_moment(40)
    unit = make_unit(RtnLower(), {"q": weight})
    unit.step.run(unit)
    assert unit.graph.require("q", Rtn).error is None
    ref = unit.put("x:moment", moment)
    annotate_all(unit, Moment(tensor=ref, samples=1, tokens=1, masked=0))
    unit.step.run(unit)
    expected = relative_output_error(weight, dense(unit, "q"), moment)
    assert unit.graph.require("q", Rtn).error == expected > 0


def test_predicted_bytes_are_packed() -> None:
    unit = make_unit(RtnLower(bits=4, group=16), {"q": noise(3, 40)})
    unit.step.run(unit)
    codec = unit.graph.require("q", Rtn).codec
    expected = dense(unit, "q")
    Pack().run(unit)
    stored = {name.rpartition(".")[2]: tensor for name, tensor in unit.tensors.held()}
    assert sum(tensor.nbytes for tensor in stored.values()) == codec.nbytes == 3 * 3 * (8 + 4)
    assert codec.payload_bits == 3 * 40 * 4
    assert torch.equal(codec.dense(codec.unpack(stored)), expected)


def test_weights_beyond_fp16_name_every_layer() -> None:
    huge = noise(2, 16) * 1e6
    unit = make_unit(RtnLower(), {"q": huge, "k": noise(2, 16), "v": huge})
    with pytest.raises(InvalidCheckpoint, match="weights do not fit fp16 scales") as caught:
        unit.step.run(unit)
    assert caught.value.where == ("%q", "%v")


def test_weights_that_decode_to_zero_name_every_layer() -> None:
    """fp16 scales end at 6e-8: what lies below would be stored as nothing, without a word."""
    tiny = noise(2, 16) * 1e-9
    unit = make_unit(RtnLower(), {"q": tiny, "k": noise(2, 16) * 1e-5, "v": tiny, "o": tiny * 0})
    with pytest.raises(InvalidCheckpoint, match="weights decode to zero") as caught:
        unit.step.run(unit)
    assert caught.value.where == ("%q", "%v")


def test_a_block_that_is_nothing_beside_the_others_may_vanish() -> None:
    weight = noise(2, 256)
    weight[:, :128] *= 1e-9
    unit = make_unit(RtnLower(), {"q": weight})
    unit.step.run(unit)
    assert float(dense(unit, "q")[:, :128].abs().max()) < 1e-7


@pytest.mark.parametrize("settings", [{"group": 12}, {"bits": 3}, {"rows": 0}, {"extra": 1}])
def test_the_codec_refuses_impossible_settings(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        UniformGrid.model_validate({"rows": 1, "columns": 8, "group": 8, "bits": 2, **settings})
