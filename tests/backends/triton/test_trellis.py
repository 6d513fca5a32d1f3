"""Linears on trellis codes against the exact product, within what rounding explains."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tests.support.interpreter  # noqa: F401
from qdc.backends.triton import operators, rotation
from qdc.backends.triton.checking import Formula
from qdc.backends.triton.expanding import expand_trellis
from qdc.backends.triton.launch import run_trellis
from qdc.backends.triton.modules import PackedEmbedding, PackedLinear
from qdc.backends.triton.parts import Part
from qdc.backends.triton.variants import EXPAND, TRELLIS, Choice, Variant, trellis_choice
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
def test_joined_layers_of_other_sizes_expanded(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What many rows take; layers have one tile to three, and transform in three sizes."""
    monkeypatch.setattr(operators, "trellis_choice", lambda *shape: Choice(EXPAND))
    parts = [trellis_part(1, 256, 64), trellis_part(2, 128, 64), trellis_part(3, 384, 64)]
    x = activations(4, 5, 64, dtype)
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


@pytest.mark.parametrize("rate", range(8, 33))
def test_every_rate_and_window(rate: int) -> None:
    """Levels alone: tiles of one column and of several, and the rows of a second program."""
    for window, rows in ((8, 20), (10, 128), (12, 70), (16, 20), (16, 64)):
        part = trellis_part(rate, rows, 10, rate=rate, window=window)
        module = PackedLinear([part], torch.float32, "cpu")
        assert isinstance(part.codec, TrellisCode)
        weight = torch.full((rows, 10), torch.nan)
        expand_trellis(
            module.codes,
            module.exact_table,
            torch.ones(1),
            module.tiles,
            10,
            module.height,
            module.span,
            rate,
            window,
        )(weight, 0, len(module.tiles), 0)
        assert torch.equal(weight, part.codec.points(part.stored["codes"]))


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


@pytest.mark.parametrize("size", [1, 2, 64, 512, 4096])
@pytest.mark.parametrize("largest", [rotation.LARGEST, 0], ids=["kernel", "torch"])
def test_inputs_are_rotated_as_the_format_does(
    size: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "LARGEST", largest)
    width = 3 * size
    both = [RandomHadamard.of(width, seed) for seed in (5, 6)]
    values = activations(1, 4, width, torch.float32)[::2]
    signs = torch.stack([one.signs for one in both]).to(torch.int8)
    with poisoned_memory():
        found = rotation.rotated_inputs(values, signs)
    assert both[0].size == size
    assert torch.equal(found, torch.stack([one.forward(values) for one in both]))


@pytest.mark.parametrize("largest", [rotation.LARGEST, 0], ids=["kernel", "torch"])
@pytest.mark.parametrize("bias", [None, torch.arange(1216.0)], ids=["no bias", "bias"])
def test_outputs_are_added_up_and_rotated_back(
    largest: int, bias: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "LARGEST", largest)
    rows = (96, 32, 64, 1024)
    each = [RandomHadamard.of(count, seed) for seed, count in enumerate(rows)]
    parts = activations(2, 6, 1216, torch.float32).view(3, 2, 1216)
    signs = torch.cat([one.signs for one in each]).to(torch.int8)
    with poisoned_memory():
        found = rotation.rotated_outputs(parts, signs, rows, bias, torch.float32)
    whole = torch.split(parts.sum(0), list(rows), dim=1)
    wanted = torch.cat([one.inverse(own) for one, own in zip(each, whole, strict=True)], 1)
    wanted = wanted if bias is None else wanted + bias
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-5)


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
