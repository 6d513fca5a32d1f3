"""The variable-width codec in a form that gradients move: where it starts, derivatives, polish."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdc.format.relaxation import TrainableKind
from qdc.format.relaxedwidth import RelaxedWidth
from qdc.format.variablewidth import VariableWidth
from qdc.numerics.zeropoint import ZeroPointGrid
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.units import noise

BITS = (2, 1, 3, 4)


def relaxed(weight: Tensor) -> tuple[VariableWidth, dict[str, Tensor], RelaxedWidth]:
    rows, columns = weight.shape
    codec = VariableWidth(rows=rows, columns=columns, group=16, bits=BITS[: -(-columns // 16)])
    blocks = [weight[:, part] for part in codec.column_blocks]
    grids = [
        ZeroPointGrid.spanning(0.7 * block.amin(1), 0.7 * block.amax(1), bits)
        for block, bits in zip(blocks, codec.bits, strict=True)
    ]
    codes = [g.encode(g.round(block)) for g, block in zip(grids, blocks, strict=True)]
    working = VariableWidth.working(grids, codes)
    return codec, working, codec.relax(working, weight)


@pytest.mark.parametrize("columns", [8, 64, 57])
def test_starts_at_the_codes_that_it_got(columns: int) -> None:
    weight = noise(5, columns)
    codec, working, layer = relaxed(weight)
    assert torch.equal(layer.dense(), codec.dense(working))
    again = layer.working()
    assert all(torch.equal(again[name], working[name]) for name in working)
    assert all(again[name].dtype == working[name].dtype for name in working)
    other = {**working, "codes": torch.zeros_like(working["codes"])}
    assert torch.equal(codec.relax(other, weight).working()["codes"], other["codes"])


def test_gradients_go_straight_to_latent_weights_and_exactly_to_scales() -> None:
    codec, working, layer = relaxed(noise(3, 57))
    pull = noise(3, 57, 1)
    (layer.dense() * pull).sum().backward()  # type: ignore[no-untyped-call]
    assert layer.latent.grad is not None
    assert layer.scale.grad is not None
    assert torch.equal(layer.latent.grad, pull)
    for group, part in enumerate(codec.column_blocks):
        one = {**working, "scale": torch.zeros_like(working["scale"])}
        one["scale"][:, group] = 1
        slope = (codec.dense(one)[:, part] * pull[:, part]).sum(1)
        torch.testing.assert_close(layer.scale.grad[:, group], slope)


def test_what_is_trained_is_stored_as_it_is_seen() -> None:
    weight = noise(6, 64)
    codec, working, layer = relaxed(weight)
    kinds = [kind for kind, _, size in layer.trainable() if size > 0]
    assert kinds == [TrainableKind.CODE, TrainableKind.SCALE]
    first = (layer.dense() - weight).square().sum().item()
    optimizer = torch.optim.Adam([layer.latent, layer.scale], lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (layer.dense() - weight).square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = layer.working()
    assert torch.equal(found["zero"], working["zero"])
    codec.pack_exactly(found, "layer")
    assert (codec.dense(found) - weight).square().sum() < 0.97 * first


def test_scales_stay_in_their_range() -> None:
    codec, _, layer = relaxed(noise(2, 64))
    with torch.no_grad():
        layer.scale[0] = -1
    found = layer.working()
    assert not found["scale"][0].any()
    assert not codec.dense(found)[0].any()
    assert torch.equal(layer.dense(), codec.dense(found))
    with torch.no_grad():
        layer.scale[0] = 1e6
    with pytest.raises(OverflowError):
        layer.working()


def test_polish_takes_it(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", d_model=32, mlp_hidden_size=48, n_layers=1)
    passes = (
        "stages(calibrate-mcs,sensitivity{block=8},slim-allocate,slim-lower{steps=4}),"
        "polish{iterations=3},pack"
    )
    report = compile_tiny(model, tmp_path / "out", passes)
    assert {layer.codec for layer in report.layers} == {"variable-width"}
