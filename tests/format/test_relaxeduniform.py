"""The uniform codec in a form that gradients move: where it starts, its derivatives, polish."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qdc
from qdc.format.relaxation import TrainableKind
from qdc.format.relaxeduniform import RelaxedUniform
from qdc.format.uniformgrid import UniformGrid
from qdc.numerics.blocks import block_slices
from qdc.numerics.uniform import Zero, fit_uniform
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.texts import TEXT
from tests.support.units import noise

ZEROS: list[Zero] = ["float", "packed"]


def relaxed(
    weight: Tensor, zero: Zero, bits: int = 2, group: int = 16
) -> tuple[UniformGrid, dict[str, Tensor], RelaxedUniform]:
    rows, columns = weight.shape
    codec = UniformGrid.model_validate(
        {"rows": rows, "columns": columns, "group": group, "bits": bits, "zero": zero}
    )
    grids = [
        fit_uniform(weight[:, part], bits, "clip", zero) for part in block_slices(columns, group)
    ]
    working = UniformGrid.working(grids, group, zero)
    return codec, working, codec.relax(working, weight)


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("columns", [16, 40])
def test_starts_at_the_codes_that_it_got(zero: Zero, bits: int, columns: int) -> None:
    weight = noise(5, columns)
    codec, working, layer = relaxed(weight, zero, bits)
    assert torch.equal(layer.dense(), codec.dense(working))
    again = layer.working()
    assert again.keys() == working.keys()
    assert all(torch.equal(again[name], working[name]) for name in working)
    assert all(again[name].dtype == working[name].dtype for name in working)


@pytest.mark.parametrize("zero", ZEROS)
def test_codes_far_from_the_weights_are_kept(zero: Zero) -> None:
    weight = noise(4, 24)
    codec, working, _ = relaxed(weight, zero)
    codes = torch.randint(0, 4, working["codes"].shape, generator=torch.Generator().manual_seed(0))
    working["codes"] = codes.to(torch.uint8)
    working["codes"].flatten(1)[:, 24:] = 0
    layer = codec.relax(working, weight)
    assert torch.equal(layer.working()["codes"], working["codes"])
    free, level = layer.latent.detach().flatten(1)[:, :24], layer.dense().detach()
    way, whole = free - level, weight - level
    assert bool((way * whole >= 0).all())
    assert bool((way.abs() <= 0.5001 * whole.abs()).all())
    assert float(way.abs().max()) > 0


@pytest.mark.parametrize("zero", ZEROS)
def test_gradients(zero: Zero) -> None:
    weight = noise(3, 24)
    _, _, layer = relaxed(weight, zero)
    seen = noise(3, 24, 1)
    torch.autograd.backward((layer.dense() * seen).sum())
    assert layer.latent.grad is not None
    assert torch.equal(layer.latent.grad.flatten(1)[:, :24], seen)
    assert not layer.latent.grad.flatten(1)[:, 24:].any()
    step = 1e-3
    for kind, tensor, _ in layer.trainable():
        if kind is TrainableKind.CODE:
            continue
        assert tensor.grad is not None
        for place in itertools.product(range(3), range(2)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    moved = relaxed(weight, zero)[2]
                    codes = moved.working()["codes"].float()
                    other = dict(moved.named_parameters())[
                        next(n for n, p in layer.named_parameters() if p is tensor)
                    ]
                    other[place] += sign * step
                    dense = codes * moved.scale[..., None] + moved._minimum()[..., None]
                    values.append(float((dense.flatten(1)[:, :24] * seen).sum()))
            numeric = (values[0] - values[1]) / (2 * step)
            assert float(tensor.grad[place]) == pytest.approx(numeric, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("zero", ZEROS)
def test_descent_takes_the_output_nearer(zero: Zero) -> None:
    weight, inputs = noise(8, 24), noise(64, 4, 2) @ noise(4, 24, 3)
    codec, working, layer = relaxed(weight, zero)
    target = inputs @ weight.T
    before = float((inputs @ codec.dense(working).T - target).square().mean())
    rates = {TrainableKind.CODE: 0.02, TrainableKind.SCALE: 0.005}
    groups = [{"params": [t], "lr": rates[kind] * size} for kind, t, size in layer.trainable()]
    optimizer = torch.optim.Adam(groups)
    best, found = before, working
    for _ in range(200):
        optimizer.zero_grad()
        loss = (inputs @ layer.dense().T - target).square().mean()
        if loss.item() < best:
            best, found = loss.item(), layer.working()
        torch.autograd.backward(loss)
        optimizer.step()
    codec.pack_exactly(found, "q")
    assert float((inputs @ codec.dense(found).T - target).square().mean()) < 0.6 * before
    if zero == "packed":
        assert torch.equal(found["zero"], working["zero"])


def test_what_does_not_fit_fp16_and_negative_scales() -> None:
    codec, _, layer = relaxed(noise(2, 16), "float")
    with torch.no_grad():
        layer.scale[0] = -1.0
    working = layer.working()
    assert working["scale"][0] == 0
    assert not working["codes"][0].any()
    assert torch.equal(codec.dense(working)[0], layer.dense()[0].half().float())
    with torch.no_grad():
        layer.scale[1] = 1e6
    with pytest.raises(OverflowError, match="fp16"):
        layer.working()


@pytest.mark.parametrize(
    "passes",
    [
        "rtn-lower{search=clip zero=packed},polish{iterations=20 check-every=5},pack",
        "rtn-lower,polish{iterations=20 check-every=5},pack",
    ],
)
def test_polish_moves_lowered_layers(passes: str, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", d_model=32, mlp_hidden_size=48)
    (tmp_path / "text.txt").write_text(TEXT)
    given = {"calibration": tmp_path / "text.txt", "samples": 8, "length": 12}
    compile_tiny(model, tmp_path / "polished", passes, **given)
    compile_tiny(model, tmp_path / "plain", passes.partition(",")[0] + ",pack")
    states = [
        qdc.load(tmp_path / name, backend="reference").state_dict()
        for name in ("polished", "plain")
    ]
    layer = "model.transformer.blocks.1.ff_proj.weight"
    assert not torch.equal(states[0][layer], states[1][layer])
    assert states[0][layer].isfinite().all()
