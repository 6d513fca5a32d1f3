"""The ternary codec with shifts: what is stored, what is refused, its form that gradients move."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

import qdc
from qdc.backends.triton.parts import refuse_codec
from qdc.errors import InvalidArtifact, QdcError
from qdc.format.shiftedternary import ShiftedTernary
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.units import noise

EXAMPLES = Path(__file__).parents[2] / "examples"


def drawn(codec: ShiftedTernary, seed: int = 0) -> dict[str, Tensor]:
    """Working tensors of random codes and levels."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = codec.rows, codec.columns
    order = torch.randperm(columns, generator=generator) if codec.reordered else None
    scale, shift = torch.randn(2, rows, codec.groups, generator=generator)
    codes = torch.randint(-1, 2, (rows, columns), generator=generator)
    return dict(codec.working(codes, scale.abs(), shift, order))


@given(
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(1, 80),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_packing_is_exact(rows: int, columns: int, group: int, reordered: bool, seed: int) -> None:
    codec = ShiftedTernary(rows=rows, columns=columns, group=group, reordered=reordered)
    working = drawn(codec, seed)
    stored = codec.pack_exactly(working, "q")
    groups = -(-columns // group)
    nbytes = rows * (-(-columns // 5) + 4 * groups) + 2 * columns * reordered
    assert sum(tensor.nbytes for tensor in stored.values()) == codec.nbytes == nbytes
    assert sum(tensor.nbytes for tensor in working.values()) == codec.working_bytes
    back = codec.unpack(stored)
    assert back.keys() == working.keys()
    assert all(torch.equal(back[suffix], tensor) for suffix, tensor in working.items())
    # the definition, digit by digit
    digits = stored["codes"].numpy()[:, :, None] // 3 ** np.arange(5) % 3
    codes = digits.reshape(rows, -1)[:, :columns].astype(np.float32) - 1
    scale, shift = (
        stored[s].numpy().astype(np.float32).repeat(group, 1)[:, :columns]
        for s in ("scale", "shift")
    )
    wanted = np.empty((rows, columns), np.float32)
    order = stored["permutation"].numpy() if reordered else np.arange(columns)
    wanted[:, order] = scale * codes + shift
    np.testing.assert_array_equal(codec.dense(back).numpy(), wanted)
    blocks = codec.column_blocks
    assert [c for part in blocks for c in range(part.start, part.stop)] == list(range(columns))


def test_bits_of_an_8b_model_are_those_of_the_literature() -> None:
    shapes = [(4096, 4096)] * 4 + [(12288, 4096)] * 2 + [(4096, 12288)]
    layers = [ShiftedTernary(rows=rows, columns=columns, group=128) for rows, columns in shapes]
    weights = sum(rows * columns for rows, columns in shapes)
    assert 8 * sum(layer.nbytes for layer in layers) / weights == pytest.approx(1.852, abs=1e-3)
    payload = sum(layer.payload_bits for layer in layers)
    assert payload / weights == pytest.approx(1.6, abs=1e-6)
    ordered = [layer.model_copy(update={"reordered": True}) for layer in layers]
    extra = 8 * sum(layer.nbytes for layer in ordered) / weights - 1.8513
    assert extra == pytest.approx(0.003, abs=1e-3)


@pytest.mark.parametrize("columns", [1 << 15, (1 << 15) + 1])
def test_a_permutation_is_as_wide_as_it_must_be(columns: int) -> None:
    codec = ShiftedTernary(rows=1, columns=columns, group=128, reordered=True)
    dtype = "i16" if columns <= 1 << 15 else "i32"
    assert codec.specification()["permutation"].dtype == dtype
    working = drawn(codec)
    assert torch.equal(codec.unpack(codec.pack_exactly(working, "q"))["codes"], working["codes"])


@pytest.mark.parametrize("places", [[0, 1, 2, 2], [0, 1, 2, 4], [-1, 0, 1, 2]])
def test_what_is_no_permutation_is_refused(places: list[int]) -> None:
    codec = ShiftedTernary(rows=2, columns=4, group=4, reordered=True)
    stored = codec.pack(drawn(codec))
    codec.check(stored, "q")
    stored["permutation"] = torch.tensor(places, dtype=torch.int16)
    with pytest.raises(InvalidArtifact, match=r"each column of 0\.\.3 once"):
        codec.check(stored, "q")


def test_other_tensors_are_refused() -> None:
    codec = ShiftedTernary(rows=2, columns=4, group=4)
    stored = codec.pack(drawn(codec))
    with pytest.raises(InvalidArtifact, match="NaN or infinity"):
        codec.check({**stored, "shift": stored["shift"] * torch.inf}, "q")
    with pytest.raises(InvalidArtifact, match="the stored tensors are"):
        codec.check({**stored, "permutation": torch.arange(4, dtype=torch.int16)}, "q")
    with pytest.raises(InvalidArtifact, match="the format says"):
        codec.check({**stored, "codes": stored["codes"].repeat(1, 2)}, "q")


@pytest.mark.parametrize("field", [{"group": 0}, {"group": 1 << 17}, {"rows": 1 << 25}, {"x": 1}])
def test_fields_out_of_range_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ShiftedTernary.model_validate({"rows": 2, "columns": 4, "group": 4, **field})


@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("group", [16, 1 << 16])
def test_its_relaxed_form_starts_at_the_codes_that_it_got(reordered: bool, group: int) -> None:
    codec = ShiftedTernary(rows=5, columns=40, group=group, reordered=reordered)
    working = drawn(codec)
    layer = codec.relax(working, noise(5, 40))
    assert torch.equal(layer.dense(), codec.dense(working))
    again = layer.working()
    assert all(torch.equal(again[name], working[name]) for name in working)
    assert all(again[name].dtype == working[name].dtype for name in working)
    assert layer.latent.numel() < 5 * (40 + 16)


@pytest.mark.parametrize("reordered", [False, True])
def test_its_gradients_are_those_of_the_levels(reordered: bool) -> None:
    codec = ShiftedTernary(rows=3, columns=20, group=8, reordered=reordered)
    working = drawn(codec)
    layer = codec.relax(working, noise(3, 20))
    pull = noise(3, 20, 1)
    moved = (layer.scale, layer.shift, layer.latent)
    by_scale, by_shift, by_latent = torch.autograd.grad((layer.dense() * pull).sum(), moved)
    order = working["permutation"].long() if reordered else torch.arange(20)
    pulled, codes = pull[:, order], working["codes"].float()
    by_group = [(pulled[:, p], codes[:, p]) for p in map(slice, (0, 8, 16), (8, 16, 20))]
    scale = torch.stack([(p * c).sum(1) for p, c in by_group], 1)
    shift = torch.stack([p.sum(1) for p, _ in by_group], 1)
    torch.testing.assert_close(by_scale, scale)
    torch.testing.assert_close(by_shift, shift)
    torch.testing.assert_close(by_latent.flatten(1)[:, :20], pulled)


def test_its_relaxed_form_refuses_levels_beyond_fp16() -> None:
    codec = ShiftedTernary(rows=2, columns=8, group=8)
    layer = codec.relax(drawn(codec), noise(2, 8))
    with torch.no_grad():
        layer.shift.fill_(1e6)
    with pytest.raises(OverflowError, match="not finite in float16"):
        layer.working()


def test_it_has_no_kernel_and_the_backend_says_so() -> None:
    codec = ShiftedTernary(rows=2, columns=128, group=128)
    with pytest.raises(QdcError, match="no kernel for layers stored as shifted-ternary") as caught:
        refuse_codec(codec, "h0.q")
    assert caught.value.where == ("h0.q",)


def test_polish_moves_it_and_what_is_stored_is_what_loads(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", d_model=32, mlp_hidden_size=48, n_layers=1)
    (tmp_path / "text.txt").write_text("one word after another, again and again. " * 60)
    lowering = "stages(calibrate-mcs,sensitivity,pt2-lower{group=16 reorder=similarity})"
    states = []
    for name, polish in (("plain", ""), ("polished", ",polish{iterations=4 check-every=2}")):
        given = {"calibration": tmp_path / "text.txt", "samples": 8, "length": 12}
        report = compile_tiny(model, tmp_path / name, f"{lowering}{polish},pack", **given)
        assert report.tensor_bytes == report.predicted_bytes
        states.append(qdc.load(tmp_path / name, backend="reference").state_dict())
    layer = "model.transformer.blocks.0.ff_proj.weight"
    assert not torch.equal(states[0][layer], states[1][layer])
    assert states[1][layer].isfinite().all()
    with pytest.raises(ValueError, match="this reader knows multi-binary and uniform"):
        runpy.run_path(str(EXAMPLES / "read_artifact.py"))["read"](tmp_path / "plain")
