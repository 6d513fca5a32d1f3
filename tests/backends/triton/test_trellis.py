"""Linears on trellis codes against the exact product, within what rounding explains."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tests.support.interpreter  # noqa: F401
from qdc.backends.triton import rotation
from qdc.backends.triton.checking import Formula
from qdc.backends.triton.launch import expand_trellis, run_trellis
from qdc.backends.triton.modules import PackedEmbedding, PackedLinear
from qdc.backends.triton.parts import Part
from qdc.backends.triton.variants import TRELLIS, Choice, Variant, trellis_choice
from qdc.errors import QdcError
from qdc.format.trelliscode import TrellisCode
from qdc.numerics.hadamard import RandomHadamard
from tests.support.kernels import poisoned_memory, trellis_part

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def activations(seed: int, tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def excess(found: Tensor, part: Part, x: Tensor) -> float:
    """The largest deviation as a share of what is allowed."""
    exact, allowed = Formula(part.codec, part.stored).linear(x, part.bias, found.dtype)
    return float(((found.double() - exact).abs() / allowed).max())


@settings(max_examples=10)
@given(st.data())
def test_against_the_formula(data: st.DataObject) -> None:
    columns, tokens = data.draw(st.integers(1, 100)), data.draw(st.sampled_from([0, 1, 18]))
    dtype = data.draw(st.sampled_from(DTYPES))
    rows = data.draw(st.sampled_from([1, 20, 64, 100, 128, 130]))
    form: dict[str, Any] = {
        "rate": data.draw(st.integers(8, 32)),
        "window": data.draw(st.sampled_from([8, 10, 12, 16])),
        "code": data.draw(st.sampled_from(["quadratic", "1mad"])),
        "height": data.draw(st.sampled_from([128, 16])),
    }
    seeds = data.draw(st.sampled_from([(7,), (7, 7), (7, 8)]))
    parts = [trellis_part(n, rows, columns, inputs=seed, **form) for n, seed in enumerate(seeds)]
    parts[0] = Part(*parts[0][:2], data.draw(st.sampled_from([None, torch.randn(rows)])))
    module = PackedLinear(parts, dtype, "cpu")
    x = activations(rows, tokens, columns, dtype)
    with poisoned_memory():
        found = module(x)
    assert found.shape == (tokens, rows * len(seeds))
    assert found.dtype == dtype
    for part, own in zip(parts, found.split(rows, 1), strict=True):
        assert not tokens or excess(own, part, x) < 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_of_joined_layers_of_other_sizes(dtype: torch.dtype) -> None:
    """Expanded once; the larger layer has two tiles, and both transform in other sizes."""
    parts = [trellis_part(1, 256, 64), trellis_part(2, 128, 64), trellis_part(3, 384, 64)]
    x = activations(4, 256, 64, dtype)
    with poisoned_memory():
        found = PackedLinear(parts, dtype, "cpu")(x)
    for part, own in zip(parts, found.split([256, 128, 384], 1), strict=True):
        assert excess(own, part, x) < 1


@pytest.mark.parametrize("variant", [variant for _, variant in TRELLIS], ids=lambda v: v.name)
@pytest.mark.parametrize("split", [1, 3])
def test_every_variant_and_split(variant: Variant, split: int) -> None:
    codec, stored, _ = part = trellis_part(1, 130, 200)
    module = PackedLinear([part], torch.float16, "cpu")
    x = activations(2, 19, 200, torch.float16)
    assert isinstance(codec, TrellisCode)
    with poisoned_memory():
        parts = run_trellis(
            x[None],
            module.codes,
            module.table,
            module.scale,
            module.tiles,
            130,
            codec.height,
            codec.width,
            codec.rate,
            codec.window,
            Choice(variant, split),
        )
    assert parts.shape == (split, 19, 130)
    exact = x.double() @ (codec.points(stored["codes"]).double() * float(stored["scale"])).T
    # Levels and these inputs are exact in fp16: nothing is rounded but the sums.
    torch.testing.assert_close(parts.double().sum(0), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_expansion_is_the_scaled_level_rounded_once(dtype: torch.dtype) -> None:
    parts = [trellis_part(s, 200, 70, rate=21) for s in (1, 2)]
    module = PackedLinear(parts, dtype, "cpu")
    weight = torch.full((300, 70), torch.nan, dtype=dtype)
    # From the second tile on, whose first output is 100.
    expand_trellis(
        module.codes, module.exact_table, module.scale, module.tiles, 70, module.height, 1, 21, 10
    )(weight, 1, 4, 100)
    wanted = []
    for part in parts:
        assert isinstance(part.codec, TrellisCode)
        wanted.append(part.codec.points(part.stored["codes"]) * part.stored["scale"].float())
    assert torch.equal(weight, torch.cat(wanted)[100:].to(dtype))


def test_the_tolerance_notices_one_bit() -> None:
    part = trellis_part(1, 128, 64)
    module = PackedLinear([part], torch.float16, "cpu")
    x = activations(2, 16, 64, torch.float16)
    assert excess(module(x), part, x) < 0.5
    module.codes[0, 5, 3] ^= 1 << 9
    assert excess(module(x), part, x) > 2


@pytest.mark.parametrize("size", [1, 2, 32, 64, 128, 4096, 8192])
def test_transforms_are_those_of_the_format(size: int) -> None:
    width = 3 * size
    rotated = RandomHadamard.of(width, 5)
    assert rotated.size == size
    values = activations(1, 2, width, torch.float32)
    found = rotation.transform(values * rotated.signs, size)
    torch.testing.assert_close(found, rotated.forward(values), rtol=1e-5, atol=1e-5)


def test_many_numbers_are_rotated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    module = PackedLinear([trellis_part(s, 96, 80) for s in (1, 2)], torch.float16, "cpu")
    x = activations(3, 7, 80, torch.float16)
    whole = module(x)
    monkeypatch.setattr(rotation, "ROTATED", 400)
    with poisoned_memory():
        assert torch.allclose(module(x), whole, rtol=2**-10, atol=1e-4)


def test_nothing_dense_stays() -> None:
    part = trellis_part(7, 512, 1024)
    module = PackedLinear([part], torch.bfloat16, "cpu")
    resident = sum(buffer.untyped_storage().nbytes() for buffer in module.buffers())
    assert resident < 1.08 * part.codec.nbytes


def test_small_layers_are_split_between_programs() -> None:
    assert trellis_choice(1, 32, 128, 4096).split > 1
    assert trellis_choice(1, 32, 128, 64).split == 1
    assert trellis_choice(256, 32, 128, 4096).variant.family == "expand"


def test_an_embedding_is_refused() -> None:
    with pytest.raises(QdcError, match="no kernel for embeddings stored as trellis") as caught:
        PackedEmbedding(trellis_part(1, 128, 64), torch.float16, "cpu")
    assert "reference" in str(caught.value.help)
