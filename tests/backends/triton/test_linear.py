"""Packed linears against the exact product, within what rounding explains."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.support.interpreter  # noqa: F401
from qdc.backends.triton import expanding
from qdc.backends.triton.expanding import expand_binary, expand_uniform
from qdc.backends.triton.launch import run_binary
from qdc.backends.triton.modules import PackedEmbedding, PackedLinear
from qdc.backends.triton.parts import Part
from qdc.backends.triton.variants import CANDIDATES, Choice, Variant, default_choice
from tests.support.kernels import Layer, binary_layer, bound, poisoned_memory, uniform_layer

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# The interpreter has no stages: variants that differ in them alone are one.
SPLIT_VARIANTS = list(
    {
        (variant.family, variant.rows, variant.tokens): variant
        for variant in CANDIDATES
        if variant.family != "expand"
    }.values()
)


def roundings(family: str, dtype: torch.dtype) -> int:
    """How often a weight or a factor of it meets the dtype: scales are exact in fp16."""
    scale = 0 if dtype == torch.float16 else 1
    return {"planes": scale, "tile": 2 * scale + 2, "expand": 1}[family]


def activations(seed: int, tokens: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def family_of(module: PackedLinear, tokens: int, dtype: torch.dtype) -> str:
    if dtype == torch.float32:
        return "expand"
    units = len(module.pairs) + len(module.singles)
    return default_choice(tokens, module.pair_planes.shape[1], units).variant.family


@settings(max_examples=10)
@given(st.data())
def test_binary(data: st.DataObject) -> None:
    block = data.draw(st.sampled_from([32, 64, 96, 128, 256, 288]))
    columns = data.draw(st.integers(1, 300))
    blocks = -(-columns // block)
    orders = tuple(data.draw(st.lists(st.integers(1, 4), min_size=blocks, max_size=blocks)))
    tokens = data.draw(st.sampled_from([0, 1, 3, 17, 40]))
    dtype = data.draw(st.sampled_from(DTYPES))
    seed = data.draw(st.integers(0, 1000))
    bits = data.draw(st.sampled_from([8, 16]))
    layers = [
        binary_layer(seed + i, data.draw(st.integers(1, 70)), columns, block, orders, bits)
        for i in range(data.draw(st.integers(1, 3)))
    ]
    biases = [
        torch.randn(layer.dense.shape[0]) if data.draw(st.booleans()) else None for layer in layers
    ]
    parts = [Part(*layer.part[:2], bias) for layer, bias in zip(layers, biases, strict=True)]
    module = PackedLinear(parts, dtype, "cpu")
    x = activations(seed, tokens, columns, dtype)
    with poisoned_memory():
        found = module(x)
    assert found.shape == (tokens, sum(module.rows))
    assert found.dtype == dtype
    family = family_of(module, tokens, dtype) if tokens else "planes"
    for layer, bias, own in zip(layers, biases, found.split(module.rows, 1), strict=True):
        exact = x.double() @ layer.dense.T
        offset = 0 if bias is None else bias.to(dtype).double()
        slack = bound(x, layer, roundings(family, dtype))
        slack += 0 if bias is None else 2.0**-7 * bias.double().abs()
        assert ((own.double() - exact - offset).abs() <= slack).all()


@pytest.mark.parametrize("variant", SPLIT_VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("split", [1, 3])
def test_every_variant_and_split(variant: Variant, split: int) -> None:
    layer = binary_layer(1, 70, 500, 128, (2, 1, 3, 2))
    module = PackedLinear([layer.part], torch.bfloat16, "cpu")
    x = activations(2, min(variant.tokens, 16) + 3, 500, torch.bfloat16)
    with poisoned_memory():
        first, second = (_run(module, x, Choice(variant, split)) for _ in range(2))
    slack = bound(x, layer, roundings(variant.family, torch.bfloat16))
    assert ((first.double() - x.double() @ layer.dense.T).abs() <= slack).all()
    assert torch.equal(first, second)
    assert not module.arrivals.any()


@pytest.mark.parametrize("tokens", [1, 256])
@pytest.mark.parametrize("orders", [(1, 1), (2, 2)], ids=["no pairs", "no singles"])
def test_one_of_the_loops_may_be_empty(orders: tuple[int, ...], tokens: int) -> None:
    layer = binary_layer(1, 40, 64, 32, orders)
    x = activations(2, tokens, 64, torch.bfloat16)
    found = PackedLinear([layer.part], torch.bfloat16, "cpu")(x)
    slack = bound(x, layer, 3)
    assert ((found.double() - x.double() @ layer.dense.T).abs() <= slack).all()


def _run(module: PackedLinear, x: torch.Tensor, choice: Choice) -> torch.Tensor:
    return run_binary(
        x,
        module.pair_planes,
        module.single_planes,
        module.row_scale,
        module.col_scale,
        module.pairs,
        module.singles,
        module.tiles,
        None,
        module.arrivals,
        module.columns,
        sum(module.rows),
        choice,
    )


def test_the_tolerance_notices_a_wrong_sign() -> None:
    layer = binary_layer(1, 40, 256, 128, (2, 2))
    module = PackedLinear([layer.part], torch.float16, "cpu")
    module.pair_planes[0, 0, 0] ^= 1
    x = activations(2, 8, 256, torch.float16)
    wrong = (module(x).double() - x.double() @ layer.dense.T).abs() > bound(x, layer, 0)
    assert wrong[:, 0].any()
    assert not wrong[:, 1:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_expansion_is_the_reference_weight_rounded_once(dtype: torch.dtype) -> None:
    layers = [binary_layer(s, rows, 300, 128, (3, 4, 1), 8) for s, rows in ((1, 70), (2, 130))]
    module = PackedLinear([layer.part for layer in layers], dtype, "cpu")
    expand = expand_binary(
        module.pair_planes,
        module.single_planes,
        module.row_scale,
        module.exact_col_scale,
        module.blocks,
        module.tiles,
        module.columns,
    )
    weight = torch.full((200, 300), torch.nan, dtype=dtype)
    expand(weight, 0, len(module.tiles), 0)
    wanted = torch.cat([layer.dense for layer in layers]).to(dtype)
    if dtype == torch.bfloat16:
        # The interpreter cuts off where a GPU rounds: one unit in the last place.
        assert ((weight - wanted).abs() <= 2.0**-7 * wanted.abs()).all()
    else:
        assert torch.equal(weight, wanted)


def test_many_rows_are_expanded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = binary_layer(3, 300, 64, 64, (2,))
    module = PackedLinear([layer.part], torch.float32, "cpu")
    x = activations(4, 5, 64, torch.float32)
    whole = module(x)
    monkeypatch.setattr(expanding, "CHUNK_BYTES", 128 * 64 * 4)
    with poisoned_memory():
        parts = module(x)
    assert torch.allclose(whole, parts, rtol=0, atol=1e-6)


@settings(max_examples=10)
@given(st.data())
def test_uniform(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from([1, 2, 4, 8]))
    zero = "float" if bits == 8 else data.draw(st.sampled_from(["float", "packed"]))
    columns = data.draw(st.integers(8, 300))
    group = data.draw(st.sampled_from([32, 64, 128, -(-columns // 8) * 8]))
    seed, tokens = data.draw(st.integers(0, 1000)), data.draw(st.sampled_from([0, 2, 20]))
    dtype = data.draw(st.sampled_from(DTYPES))
    layers = [uniform_layer(seed + i, 20 + 50 * i, columns, group, bits, zero) for i in range(2)]
    module = PackedLinear([layer.part for layer in layers], dtype, "cpu")
    x = activations(seed, tokens, columns, dtype)
    with poisoned_memory():
        found = module(x).split(module.rows, 1)
    for layer, own in zip(layers, found, strict=True):
        slack = bound(x, layer, 1 if dtype == torch.float32 else 0)
        assert ((own.double() - x.double() @ layer.dense.T).abs() <= slack).all()


@pytest.mark.parametrize(("bits", "group"), [(8, 304), (4, 128), (2, 64)])
def test_embedding_and_expansion_are_exact(bits: int, group: int) -> None:
    layer = uniform_layer(5, 140, 300, group, bits, "float")
    module = PackedEmbedding(layer.part, torch.float32, "cpu")
    ids = torch.tensor([[0, 139], [7, 7]])
    # Offsets are held for the middle code: two roundings of fp32 apart from the formula.
    assert torch.allclose(module(ids), layer.dense[ids].float(), rtol=0, atol=4e-7)
    assert module(ids[:0]).shape == (0, 2, 300)
    linear = PackedLinear([layer.part], torch.float32, "cpu")
    weight = torch.full((140, 300), torch.nan)
    expand_uniform(
        linear.codes, linear.scale, linear.offset, linear.tiles, 300, bits, linear.group
    )(weight, 0, len(linear.tiles), 0)
    assert torch.allclose(weight, layer.dense.float(), rtol=0, atol=4e-7)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    module = PackedEmbedding(uniform_layer(5, 20, 64, 64, 8, "float").part, torch.float32, "cpu")
    with pytest.raises(RuntimeError):
        module(torch.tensor([20]))


def test_strides_do_not_matter() -> None:
    layer = binary_layer(6, 30, 128, 128, (2,))
    module = PackedLinear([layer.part], torch.float16, "cpu")
    wide = activations(1, 6, 256, torch.float16)
    for view in (wide[:, ::2], wide[::2, :128], wide[:, 128:], wide[:, :128].T.contiguous().T):
        assert torch.equal(module(view), module(view.contiguous()))
    assert module(wide[:, :128].reshape(2, 3, 128)).shape == (2, 3, 30)


def held(layer: Layer, dtype: torch.dtype) -> tuple[int, int]:
    module = PackedLinear([layer.part], dtype, "cpu")
    # A view counts with all that it keeps alive.
    resident = sum(t.untyped_storage().nbytes() for t in (*module.buffers(), *module.parameters()))
    return resident, layer.part.codec.nbytes


def test_nothing_dense_stays() -> None:
    resident, stored = held(
        binary_layer(7, 512, 1024, 128, (2, 1, 3, 2, 2, 2, 2, 2)), torch.bfloat16
    )
    assert resident < 1.08 * stored
