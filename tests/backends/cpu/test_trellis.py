"""Products with trellis codes against the dense formula in fp64, whichever way they take."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from qdc.backends.cpu import (
    kernels,
    ringlayout,
    ringproducts,
    rotations,
    support,
    wholerings,
)
from qdc.backends.cpu.memory import resident
from qdc.backends.cpu.modules import PackedLinear
from qdc.backends.cpu.packing import layout_of
from qdc.backends.cpu.products import Arithmetic
from qdc.errors import QdcError
from qdc.format.trelliscode import TrellisCode
from qdc.numerics.hadamard import RandomHadamard
from qdc.numerics.trellis import Code
from qdc.pipeline.running import Layer, Running
from tests.support.stored import random_stored


def codec(rows: int, columns: int, rate: int, height: int = 128, **fields: object) -> TrellisCode:
    given = {"rows": rows, "columns": columns, "rate": rate, "height": height, "width": 1}
    return TrellisCode.model_validate({"window": 10, "code": "quadratic", **given, **fields})


CODECS = {
    "2 bits": codec(256, 320, 16),
    "1 bit, window 8": codec(256, 32, 8, window=8),
    "1.5 bits": codec(200, 48, 12, height=100),
    "13 eighths, window 12, no transform of rows": codec(130, 100, 13, height=65, window=12),
    "18 eighths, ragged": codec(300, 48, 18, height=128),
    "25 eighths": codec(96, 64, 25, height=96),
    "4 bits, published": codec(128, 48, 32, window=16, code="1mad"),
    "9 eighths, tall, window 14": codec(320, 16, 9, height=320, window=14),
    "15 eighths, tiny rings": codec(80, 33, 15, height=9),
}
EXACT, FAST, WHOLE = 4e-6, 8e-3, 2e-4
"""As of the other codecs, and what rounding inputs to whole numbers of 16 bits costs."""


def linear(name: str, arithmetic: Arithmetic = "fast") -> PackedLinear:
    form = CODECS[name]
    bias = torch.linspace(-1, 1, form.rows)
    return PackedLinear(form, random_stored(form), bias, torch.float32, arithmetic)


def inputs(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def error(module: PackedLinear, x: Tensor) -> float:
    """How far a result is off, as a share of what is added up."""
    weight = module.codec.dense(random_stored(module.codec)).double()
    wanted = x.double() @ weight.T + torch.linspace(-1, 1, len(weight)).double()
    size = x.double().norm() * weight.norm() / weight.shape[1] ** 0.5
    return float((module(x).double() - wanted).norm() / size)


@pytest.mark.parametrize("name", CODECS)
def test_results_are_those_of_the_formula(name: str) -> None:
    fast, exact = linear(name), linear(name, "f32")
    assert fast.layout is not None
    for rows, allowed in ((1, EXACT), (5, WHOLE), (64, WHOLE)):
        x = inputs(rows, fast.in_features)
        assert error(fast, x) < (allowed if support.looks_up() else FAST), rows
        assert error(exact, x) < EXACT, rows


@pytest.mark.parametrize("name", ["2 bits", "15 eighths, tiny rings"])
def test_processors_without_wide_vectors_take_tiles(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "looks_up", lambda: False)
    module = linear(name)
    assert error(module, inputs(5, module.in_features)) < EXACT
    assert error(module, inputs(17, module.in_features)) < FAST
    monkeypatch.setattr(support, "product_type", lambda: torch.float32)
    assert error(module, inputs(17, module.in_features)) < EXACT


def test_processors_with_a_matrix_unit_take_tiles_for_many_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(support, "features", lambda: frozenset({"avx512bw", "amx-bf16"}))
    module = linear("2 bits")
    assert error(module, inputs(32, module.in_features)) > WHOLE
    assert error(module, inputs(31, module.in_features)) < WHOLE


def test_processors_that_multiply_and_add_by_two_instructions_find_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = linear("2 bits")
    x = inputs(9, module.in_features)
    found = module(x)
    monkeypatch.setattr(kernels, "features", lambda: frozenset({"avx512bw"}))
    kernels.whole_rings.cache_clear()
    assert torch.equal(module(x), found)
    kernels.whole_rings.cache_clear()


@pytest.mark.parametrize("code", ["quadratic", "1mad"])
def test_sums_of_a_piece_do_not_leave_their_32_bits(code: Code) -> None:
    fields = ringlayout.Fields(16, 16, aligned=True)
    largest = int(ringlayout.level_table(code, fields, torch.int16).abs().max())
    assert wholerings.PIECE * wholerings.LARGEST * largest < 2**31


def test_tiles_of_some_rings_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = linear("15 eighths, tiny rings", "f32")
    x = inputs(9, whole.in_features)
    found = whole(x)
    monkeypatch.setattr(ringproducts, "TILE_BYTES", 1)
    torch.testing.assert_close(whole(x), found)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_threads_do_not_change_the_bytes(rows: int) -> None:
    module, found = linear("1.5 bits"), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(module(inputs(rows, module.in_features)))
    if support.looks_up():  # elsewhere the library's product has its own order
        assert all(torch.equal(found[0], other) for other in found)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("width", [16, 96, 320, 512, 3 << 10])
def test_rotations_are_the_very_ones_of_the_numerics(width: int) -> None:
    rotation, x = RandomHadamard.of(width, 7), inputs(3, width)
    signs = rotation.signs.half()
    size = rotation.size**0.5
    found = rotations.rotate("inputs", x, signs)
    assert torch.equal(found * (1 / size), rotation.forward(x))
    factor, bias = torch.tensor([1 / size]), torch.zeros(width)
    assert torch.equal(rotations.rotate("outputs", x, signs, factor, bias), rotation.inverse(x))


def test_pairs_of_levels_are_those_of_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    module = linear("18 eighths, ragged")
    assert module.layout is not None
    x = inputs(3, module.in_features)
    kernels.rings.cache_clear()
    found = module(x)
    monkeypatch.setattr(ringlayout, "PAIRS_BYTES", 0)
    for cache in (kernels.rings, ringlayout.level_table):
        cache.cache_clear()
    assert torch.equal(module(x), found)
    for cache in (kernels.rings, ringlayout.level_table):
        cache.cache_clear()


def test_other_dtypes_zeros_and_nan() -> None:
    module = linear("2 bits")
    for dtype in (torch.bfloat16, torch.float16):
        x = inputs(6, 320).to(dtype)
        assert module(x.reshape(2, 3, 320)).dtype == dtype
        torch.testing.assert_close(module(x), module(x.float()).to(dtype))
    assert torch.equal(module(torch.zeros(1, 320))[0], torch.linspace(-1, 1, 256))
    for rows in (3, 12):  # in fp32, and by whole numbers
        x = inputs(rows, 320)
        x[1, 7] = torch.nan
        lost = module(x).isnan()
        assert lost[1].all()
        assert not lost[[0, 2]].any()


def test_the_dense_weight_is_the_very_one_and_gradients_are_refused() -> None:
    module = linear("1.5 bits")
    assert torch.equal(module.weight, module.codec.dense(random_stored(module.codec)))
    with pytest.raises(QdcError, match="no gradient"):
        module(torch.zeros(2, 48, requires_grad=True))


def test_codes_stay_where_they_are_and_the_memory_is_foreseen() -> None:
    held = codes = 0
    for form in CODECS.values():
        stored = random_stored(form)
        module = PackedLinear(form, stored, None, torch.float32, "fast")
        assert module.get_buffer("codes").data_ptr() == stored["codes"].data_ptr()
        held += sum(buffer.nbytes for buffer in module.buffers())
        codes += stored["codes"].nbytes
    layers = tuple(Layer(name, form, None) for name, form in CODECS.items())
    found = resident(Running(layers, tokens=4, values=0))
    assert found is not None
    assert found.parts["planes and codes"] == codes
    assert found.parts["scales"] == held - codes


def test_what_kernels_do_not_read_is_decoded() -> None:
    for form in (codec(16, 16, 16, height=16, width=16), codec(1024, 4, 16, height=1024)):
        assert layout_of(form) is None
        module = PackedLinear(form, random_stored(form), None, torch.float32, "f32")
        x = inputs(3, form.columns)
        torch.testing.assert_close(module(x), x @ module.weight.T)
