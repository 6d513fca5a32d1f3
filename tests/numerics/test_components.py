"""Scales as they are stored, in 16 bits or 8."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdc.numerics.components import Components, dense, stored


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
    share = 0.025 if bits == 8 else 0.001
    peak = (given_.row_scale.abs().amax(1) * given_.col_scale.abs().amax(1)).sum()
    assert float((dense(found) - dense(given_)).abs().max()) <= share * float(peak)


def test_a_scale_that_fp16_cannot_hold_is_refused() -> None:
    given_ = random_components(0)
    with pytest.raises(OverflowError, match="not finite in fp16"):
        stored(given_._replace(row_scale=given_.row_scale * 1e6), 8)
