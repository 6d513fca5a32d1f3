"""Codes of rows: nearest levels of the rounded grid, clipped as asked, packed without loss."""

from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.integer_product import LONGEST, integer_product
from qdc.numerics.rowquantizer import Bits, RowQuantizer, Scales, Zeros, best_clip

quantizers = st.builds(
    RowQuantizer,
    bits=st.sampled_from(get_args(Bits)),
    group=st.sampled_from([0, 1, 3, 16, 1000]),
    zeros=st.sampled_from(get_args(Zeros)),
    scales=st.sampled_from(get_args(Scales)),
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    values = torch.tensor([[-7.0, 3.4, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]])
    codes = RowQuantizer(bits=4).quantize(values)
    assert codes.codes.tolist() == [[-7, 3, 0, 1], [0, 0, 0, 0]]
    assert codes.scale.tolist() == [[1.0], [0.0]]
    assert codes.zero is None
    uneven = RowQuantizer(bits=4, zeros="asymmetric").quantize(torch.tensor([[-1.0, 14.0, 2.4]]))
    assert uneven.codes.tolist() == [[-8, 7, -5]]
    assert uneven.zero is not None
    assert (uneven.scale.tolist(), uneven.zero.tolist()) == ([[1.0]], [[-7]])


@settings(max_examples=40, deadline=None)
@given(quantizers, st.integers(1, 40), st.integers(0, 99), st.sampled_from([1.0, 0.8, 0.3]))
def test_codes_are_the_nearest_levels(
    quantizer: RowQuantizer, width: int, seed: int, clip: float
) -> None:
    values = noise(3, width, seed=seed) * 10.0 ** (seed % 5 - 2)
    codes = quantizer.quantize(values, clip)
    assert codes.codes.min() >= quantizer.lowest
    assert codes.codes.max() <= quantizer.highest
    assert codes.scale.shape == (3, quantizer.groups(width))
    assert torch.equal(
        codes.scale, codes.scale.to({"f16": torch.half}.get(quantizer.scales)).float()
    )
    found = quantizer.dequantize(codes)
    zero = torch.zeros_like(codes.scale) if codes.zero is None else codes.zero
    levels = torch.arange(quantizer.lowest, quantizer.highest + 1)
    every = (levels[:, None, None] - quantizer.spread(zero, width)) * quantizer.spread(
        codes.scale, width
    )
    nearest = (every - values).abs().amin(0)
    assert bool(((found - values).abs() <= nearest * (1 + 1e-5) + 1e-6).all())
    within = every.amin(0).lt(values) & every.amax(0).gt(values)
    half = quantizer.spread(codes.scale, width) * 0.5001 + 1e-6
    assert bool(((found - values).abs() <= half)[within].all())


@settings(max_examples=30, deadline=None)
@given(quantizers, st.integers(1, 40), st.integers(0, 99))
def test_zero_is_a_level_and_packing_loses_nothing(
    quantizer: RowQuantizer, width: int, seed: int
) -> None:
    values = noise(2, 3, width, seed=seed)
    values[..., ::2] = 0
    codes = quantizer.quantize(values)
    assert not quantizer.dequantize(codes)[..., ::2].any()
    packed = quantizer.pack(codes.codes)
    assert packed.shape[-1] == -(-width * quantizer.bits // 8)
    assert torch.equal(quantizer.unpack(packed, width), codes.codes)
    stored = {"f16": 2, "f32": 4}[quantizer.scales] * codes.scale.shape[-1]
    stored += 0 if codes.zero is None else codes.zero.shape[-1]
    assert quantizer.row_bytes(width) == packed.shape[-1] + stored


def test_two_codes_of_four_bits_take_a_byte() -> None:
    assert RowQuantizer(bits=4).pack(torch.tensor([[-8, 7, 0]], dtype=torch.int8)).tolist() == [
        [0xF0, 0x08]
    ]


def test_each_row_has_a_clip_of_its_own() -> None:
    values = noise(4, 32)
    clips = torch.tensor([[1.0], [0.8], [0.5], [1.0]])
    together = RowQuantizer().quantize(values, clips)
    for row, clip in enumerate(clips[:, 0].tolist()):
        alone = RowQuantizer().quantize(values[row], clip)
        assert torch.equal(together.codes[row], alone.codes)
        assert torch.equal(together.scale[row], alone.scale)


@pytest.mark.parametrize("zeros", get_args(Zeros))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_shows(zeros: Zeros, bad: float) -> None:
    values = torch.tensor([[1.0, bad, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
    found = RowQuantizer(group=2, zeros=zeros).round(values)
    assert found[0, :2].isnan().all()
    assert found[0, 2:].isfinite().all()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("group", [0, 8])
def test_no_rows_are_no_codes(group: int) -> None:
    for zeros in get_args(Zeros):
        quantizer = RowQuantizer(group=group, zeros=zeros)
        codes = quantizer.quantize(torch.zeros(0, 20))
        assert codes.codes.shape == (0, 20)
        assert codes.scale.shape == (0, quantizer.groups(20))
        assert quantizer.dequantize(codes).shape == (0, 20)


def test_static_grids_are_kept() -> None:
    quantizer = RowQuantizer(zeros="asymmetric", group=2)
    scale, zero = quantizer.spanning(torch.tensor([-1.28, 0.0]), torch.tensor([1.27, 2.55]))
    codes = quantizer.quantize_on(noise(5, 4), scale, zero)
    assert torch.equal(codes.scale, scale.expand(5, 2))
    assert zero.tolist() == [0, -128]
    values = torch.tensor([[float("nan"), 1.0, float("inf"), 1.0], [1.0, 1.0, 1.0, 1.0]])
    found = quantizer.dequantize(quantizer.quantize_on(values, scale, zero))
    assert found.isnan().all(1).tolist() == [True, False]


@pytest.mark.parametrize("bad", [{"bits": 3}, {"group": -1}, {"zeros": "none"}, {"scales": "f64"}])
def test_what_is_no_quantizer_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"bits|group|grid|column"):
        RowQuantizer(**bad)  # type: ignore[arg-type]


def test_the_best_clip_is_the_larger_of_equals() -> None:
    assert best_clip((0.8, 1.0), lambda clip: 1.0)[0] == 1
    assert best_clip((0.8, 1.0), lambda clip: clip)[0] == 0.8
    assert best_clip((0.8, 1.0), lambda clip: float("nan"))[0] == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.integers(0, 300), st.integers(0, 40), st.integers(0, 99))
@example(5, 1, 3, 0)
@example(1, 2, 1, 0)
def test_products_of_whole_numbers_are_exact(m: int, k: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(-128, 128, (m, k), generator=generator, dtype=torch.int8)
    b = torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8)
    assert torch.equal(integer_product(a, b), (a.long() @ b.long().T).int())


def test_sums_beyond_what_fp32_holds_are_exact() -> None:
    a = torch.full((1, 4097), 127, dtype=torch.int8)
    a[0, -1] = 1
    found = integer_product(a, a)
    assert int(found) == 4096 * 127**2 + 1 != int(torch.tensor(float(4096 * 127**2 + 1)))


def test_sums_that_might_not_fit_are_refused() -> None:
    wide = torch.zeros(1, LONGEST + 1, dtype=torch.int8)
    with pytest.raises(ValueError, match="columns"):
        integer_product(wide, wide)
    with pytest.raises(ValueError, match="int8"):
        integer_product(wide.int(), wide)
