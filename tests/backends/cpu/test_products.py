"""Products with packed weights against the dense formula in fp64, whichever way they take."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from qdc.backends.cpu import products, support
from qdc.backends.cpu.modules import PackedEmbedding, PackedLinear
from qdc.errors import QdcError
from qdc.format.codec import Codec
from qdc.format.multibinary import MultiBinary
from qdc.format.uniformgrid import UniformGrid
from tests.support.stored import random_stored

CODECS = {
    "ragged": MultiBinary(rows=200, columns=300, block=128, orders=(2, 3, 1)),
    "wide, 8-bit scales": MultiBinary(
        rows=128, columns=512, block=256, orders=(2, 4), scale_bits=8
    ),
    "narrow": MultiBinary(rows=33, columns=70, block=16, orders=(1,) * 5),
    "no kernel": MultiBinary(rows=33, columns=70, block=24, orders=(1, 2, 1)),
    "1 bit": UniformGrid(rows=70, columns=300, group=128, bits=1),
    "2 bits": UniformGrid(rows=130, columns=300, group=128, bits=2),
    "2 bits, packed": UniformGrid(rows=70, columns=192, group=64, bits=2, zero="packed"),
    "4 bits": UniformGrid(rows=70, columns=100, group=32, bits=4),
    "8 bits": UniformGrid(rows=70, columns=192, group=192, bits=8),
    "8 bits, narrow": UniformGrid(rows=70, columns=300, group=32, bits=8, zero="packed"),
    "8 bits, odd": UniformGrid(rows=70, columns=100, group=48, bits=8),
}
EXACT, FAST = 4e-6, 8e-3
"""Of the norm of what is added up: fp32 sums, and inputs or weights rounded to bf16."""
Forms = Callable[[str, products.Arithmetic], PackedLinear]


def linear(name: str, arithmetic: products.Arithmetic, bias: bool = True) -> PackedLinear:
    codec = CODECS[name]
    offsets = torch.linspace(-1, 1, codec.rows) if bias else None
    return PackedLinear(codec, random_stored(codec), offsets, torch.float32, arithmetic)


def weight_of(codec: Codec) -> Tensor:
    return codec.dense(codec.unpack(random_stored(codec)))


def inputs(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, columns, generator=generator).to(dtype)


def error(module: PackedLinear, x: Tensor, bias: bool = True) -> float:
    """How far a result is off, as a share of what is added up."""
    weight = weight_of(module.codec).double()
    wanted = x.double() @ weight.T
    if bias:
        wanted = wanted + torch.linspace(-1, 1, weight.shape[0]).double()
    found = module(x)
    assert found.shape == wanted.shape
    assert found.dtype == x.dtype
    size = x.double().norm() * weight.norm() / weight.shape[1] ** 0.5
    return float((found.double() - wanted).norm() / size)


@pytest.mark.parametrize("name", CODECS)
def test_results_are_those_of_the_formula(name: str) -> None:
    for arithmetic, allowed in (("fast", FAST), ("f32", EXACT)):
        module = linear(name, arithmetic)  # type: ignore[arg-type]
        for rows in (1, 2, 5, 9, 35):
            assert error(module, inputs(rows, module.in_features)) < allowed, (arithmetic, rows)


def test_many_rows_come_in_several_passes() -> None:
    module = linear("ragged", "fast", bias=False)
    assert error(module, inputs(130, 300), bias=False) < FAST


@pytest.mark.parametrize("name", ["ragged", "2 bits", "4 bits", "8 bits"])
def test_processors_without_wide_vectors_take_other_ways(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "looks_up", lambda: False)
    module = linear(name, "fast")
    assert error(module, inputs(3, module.in_features)) < EXACT  # in fp32, for it costs nothing
    assert error(module, inputs(17, module.in_features)) < FAST


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def absent(name: str) -> None:
        return None

    caches = (support.has_compiler, support.features, support.product_type)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(support, "find_spec", absent)
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.parametrize("name", ["ragged", "2 bits, packed", "8 bits"])
def test_torch_alone_is_enough_and_says_so_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for arithmetic, allowed in (("fast", FAST), ("f32", EXACT)):
        module = linear(name, arithmetic)  # type: ignore[arg-type]
        assert module.layout is None
        assert error(module, inputs(5, module.in_features)) < allowed
    [line] = [record.getMessage() for record in caplog.records]
    assert "llvmlite is not installed" in line
    assert "[cpu]" in line


@pytest.mark.parametrize("name", ["ragged", "2 bits", "8 bits", "narrow"])
def test_threads_do_not_change_the_bytes(name: str) -> None:
    module = linear(name, "fast")
    x = inputs(37 if name != "8 bits" else 5, module.in_features)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(module(x))
    finally:
        torch.set_num_threads(before)
    if name != "narrow":  # by tiles: the library's product has its own order
        assert all(torch.equal(found[0], other) for other in found)
    torch.testing.assert_close(found[0], found[1])


def test_leading_dimensions_and_dtypes_are_those_of_the_input() -> None:
    module = linear("ragged", "fast")
    for dtype in (torch.bfloat16, torch.float16):
        x = inputs(6, 300, dtype)
        assert error(module, x) < FAST
        assert torch.equal(module(x.reshape(2, 3, 300)), module(x).reshape(2, 3, 200))
    assert module(torch.zeros(2, 0, 300)).shape == (2, 0, 200)


def test_a_nan_reaches_its_own_row_alone() -> None:
    for name in ("ragged", "8 bits"):
        module = linear(name, "fast")
        x = inputs(3, module.in_features)
        x[1, 7] = torch.nan
        found = module(x)
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2]], module(inputs(3, module.in_features))[[0, 2]])


def test_zeros_give_the_bias() -> None:
    for name in ("ragged", "2 bits", "8 bits"):
        module = linear(name, "fast")
        wanted = torch.linspace(-1, 1, module.out_features).expand(2, -1)
        assert torch.equal(module(torch.zeros(2, module.in_features)), wanted)


def test_the_dense_weight_can_still_be_had() -> None:
    for name in ("ragged", "8 bits", "no kernel"):
        torch.testing.assert_close(linear(name, "fast").weight, weight_of(CODECS[name]))


def test_embeddings_decode_what_is_asked_for() -> None:
    for name in ("ragged", "8 bits, narrow"):
        codec = CODECS[name]
        module = PackedEmbedding(codec, random_stored(codec), torch.float32)
        ids = torch.tensor([[3, 0, 69], [3, 5, 1]])
        assert torch.equal(module(ids), weight_of(codec)[ids])
        assert module(ids[:0]).shape == (0, 3, codec.columns)
        for wrong in (-1, codec.rows):
            with pytest.raises(IndexError, match="token"):
                module(torch.tensor([wrong]))


def test_misuse_is_refused() -> None:
    module = linear("ragged", "fast")
    with pytest.raises(QdcError, match="300 columns was given"):
        module(torch.zeros(2, 299))
    with pytest.raises(QdcError, match="float64"):
        module(torch.zeros(2, 300, dtype=torch.float64))
    with pytest.raises(QdcError, match="no gradient"):
        module(torch.zeros(2, 300, requires_grad=True))
    with torch.no_grad():
        module(torch.zeros(2, 300, requires_grad=True))
    with pytest.raises(QdcError, match="cast or moved"):
        module.to(torch.bfloat16)(torch.zeros(2, 300))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_sums_that_are_as_large_as_they_can_be_do_not_overflow(bits: int) -> None:
    """Every rounding goes up, and all codes are the largest."""
    columns = 128 // bits
    codec = UniformGrid(rows=3, columns=columns, group=columns, bits=bits)
    stored = random_stored(codec)
    stored["codes"].fill_(255)
    module = PackedLinear(codec, stored, None, torch.float32, "fast")
    x = torch.full((1, columns), 0.6)
    x[0, 0] = 32767 / (2**bits - 1) - columns / 2 - 0.6 * (columns - 1)
    wanted = x.double() @ codec.dense(codec.unpack(stored)).double().T
    torch.testing.assert_close(module(x).double(), wanted, rtol=4e-3, atol=0)
