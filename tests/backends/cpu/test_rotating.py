"""Packed linears whose inputs the artifact rotates."""

import pytest
import torch

from qdc.backends.cpu import support
from qdc.backends.cpu.modules import PackedLinear
from qdc.backends.cpu.rotations import rotate_inputs
from qdc.errors import QdcError
from qdc.format.uniformgrid import UniformGrid
from qdc.numerics.hadamard import RandomHadamard, random_signs
from tests.support.stored import random_stored


@pytest.mark.parametrize("columns", [96, 576, 1536, 6])
@pytest.mark.parametrize("compiler", [True, False])
def test_inputs_are_rotated_as_the_format_says(
    columns: int, compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, with the kernel and without, whatever the strides of what comes in."""
    monkeypatch.setattr(support, "has_compiler", lambda: compiler)
    x = torch.randn(2 * columns, 5, generator=torch.Generator().manual_seed(1)).T
    before, signs = x.clone(), random_signs(columns, 9)
    for part in (x[:, :columns], x[:, :columns].bfloat16()):
        wanted = RandomHadamard.of(columns, 9).forward(part.float())
        assert torch.equal(rotate_inputs(part, signs.half()), wanted)
    assert torch.equal(x, before)


def test_a_linear_rotates_what_it_reads() -> None:
    codec = UniformGrid(rows=24, columns=96, group=32, bits=8)
    stored = random_stored(codec)
    module = PackedLinear(codec, stored, None, torch.float32, "f32", rotation=9)
    assert module.bias is None
    x = torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(1))
    weight = codec.dense(codec.unpack(stored))
    wanted = RandomHadamard.of(96, 9).forward(x) @ weight.T
    torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(x @ module.weight.T, wanted, rtol=1e-4, atol=1e-3)
    assert "input_signs" not in module.state_dict()
    assert str(module).endswith("rotated)")
    with pytest.raises(QdcError, match="cast or moved"):
        module.bfloat16()(x)


def test_who_multiplies_by_itself_reads_weight_and_bias() -> None:
    codec, bias = UniformGrid(rows=24, columns=96, group=32, bits=8), torch.linspace(-1, 1, 24)
    module = PackedLinear(codec, random_stored(codec), bias, torch.float32, "f32", rotation=9)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    found = torch.nn.functional.linear(x, module.weight, module.bias)
    torch.testing.assert_close(found, module(x), rtol=1e-4, atol=1e-3)
