"""Scales as they are stored: 16 bits, and 8 bits with one peak a plane."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.components import Components, decode_scales, dense, encode_scales, stored

halves = st.floats(0, 65504, width=16)


def rows_of(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


SCALES = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(halves, min_size=width, max_size=width), min_size=1, max_size=4)
).map(rows_of)  # fmt: skip


@given(SCALES)
def test_decoded_scales_survive_coding_again(scale: Tensor) -> None:
    codes, peak = encode_scales(scale)
    once = decode_scales(codes, peak)
    again, same_peak = encode_scales(once)
    assert torch.equal(same_peak, peak)
    assert torch.equal(decode_scales(again, same_peak), once)
    assert torch.equal(once.half().float(), once), "what is decoded fits fp16"


@given(SCALES)
def test_the_largest_scale_is_exact_and_the_others_are_near(scale: Tensor) -> None:
    codes, peak = encode_scales(scale)
    assert (codes.dtype, peak.dtype) == (torch.uint8, torch.float16)
    largest = scale.amax(1, keepdim=True)
    found = decode_scales(codes, peak)
    assert torch.equal(found.amax(1, keepdim=True), largest)
    step = largest / 255
    # half a step, and what fp16 rounds away: relatively, and where it is subnormal
    bound = 0.5 * step * (1 + 1e-5) + found * 2.0**-11 + 2.0**-25
    assert bool(((found - scale).abs() <= bound).all())


def test_a_plane_of_zeros_stays_zero() -> None:
    codes, peak = encode_scales(torch.zeros(2, 3))
    assert not codes.any()
    assert not decode_scales(codes, peak).any()


def random_components(seed: int, order: int = 2) -> Components:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (order, 5, 8), generator=generator) * 2 - 1
    rows = torch.randn(order, 5, generator=generator)
    columns = torch.randn(order, 8, generator=generator)
    return Components(signs.to(torch.int8), rows, columns)


@given(st.integers(0, 999), st.integers(1, 4), st.sampled_from([8, 16]))
def test_stored_scales_are_canonical_and_near(seed: int, order: int, bits: int) -> None:
    given_ = random_components(seed, order)
    found = stored(given_, bits)
    assert bool((found.row_scale >= 0).all())
    assert bool((found.col_scale >= 0).all())
    assert torch.equal(found.row_scale.half().float(), found.row_scale)
    assert torch.equal(found.col_scale.half().float(), found.col_scale)
    share = 0.01 if bits == 8 else 0.001
    peak = (given_.row_scale.abs().amax(1) * given_.col_scale.abs().amax(1)).sum()
    assert float((dense(found) - dense(given_)).abs().max()) <= share * float(peak)


def test_a_scale_that_fp16_cannot_hold_is_refused() -> None:
    given_ = random_components(0)
    with pytest.raises(OverflowError, match="not finite in fp16"):
        stored(given_._replace(row_scale=given_.row_scale * 1e6), 8)
