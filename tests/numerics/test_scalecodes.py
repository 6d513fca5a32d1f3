"""Scales in 8 bits with one peak a plane, by linear and by logarithmic codes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.scalecodes import ScaleCode, decode_scales, encode_scales

CODES: tuple[ScaleCode, ...] = ("linear", "logarithmic")
halves = st.floats(0, 65504, width=16)


def rows_of(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


SCALES = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(halves, min_size=width, max_size=width), min_size=1, max_size=4)
).map(rows_of)  # fmt: skip


@given(SCALES, st.sampled_from(CODES))
def test_decoded_scales_survive_coding_again(scale: Tensor, code: ScaleCode) -> None:
    codes, peak = encode_scales(scale, code)
    once = decode_scales(codes, peak, code)
    again, same_peak = encode_scales(once, code)
    assert torch.equal(same_peak, peak)
    assert torch.equal(decode_scales(again, same_peak, code), once)
    assert torch.equal(once.half().float(), once), "what is decoded fits fp16"


@given(SCALES, st.sampled_from(CODES))
def test_the_largest_scale_is_exact_and_the_others_are_near(scale: Tensor, code: ScaleCode) -> None:
    codes, peak = encode_scales(scale, code)
    assert (codes.dtype, peak.dtype) == (torch.uint8, torch.float16)
    largest = scale.amax(1, keepdim=True)
    found = decode_scales(codes, peak, code)
    assert torch.equal(found.amax(1, keepdim=True), largest)
    # Half a step: of all scales the same, or of each scale a share, but for those near 0.
    if code == "linear":
        half = 0.5 * largest / 255
    else:
        half = torch.maximum(scale * (2 ** (1 / 64) - 1), largest * 2 ** (-254 / 32) / 2)
    # And what fp16 rounds away: relatively, and where it is subnormal.
    bound = half * (1 + 1e-4) + found * 2.0**-11 + 2.0**-25
    assert bool(((found - scale).abs() <= bound).all())


@pytest.mark.parametrize("code", CODES)
def test_a_plane_of_zeros_stays_zero(code: ScaleCode) -> None:
    codes, peak = encode_scales(torch.zeros(2, 3), code)
    assert not codes.any()
    assert not decode_scales(codes, peak, code).any()


def test_logarithmic_codes_are_powers_of_the_peak() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    found = decode_scales(codes, torch.tensor([2.0]).half(), "logarithmic")
    powers = 2 * torch.exp2((codes.double() - 255) / 32)
    assert found[0] == 0
    assert torch.equal(found[31::32], powers[31::32].float()), "whole octaves are exact"
    assert bool(((found[1:] - powers[1:]).abs() <= 2.0**-11 * powers[1:]).all())
    assert torch.equal(encode_scales(found[None], "logarithmic")[0][0], codes)
