"""Linears of whole numbers: exact sums, rounded as the format says, and not as floats would be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.attention_mass import attention_mass
from qdc.numerics.integer_linear import IntegerWeight, integer_linear, segment_width
from qdc.numerics.rowquantizer import RowQuantizer

ROWS, TOKENS = 3, 4


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight_of(columns: int, group: int, bits: int, *, packed: bool, seed: int) -> IntegerWeight:
    generator, groups = drawn(seed), -(-columns // group)
    codes = torch.randint(0, 2**bits, (ROWS, columns), generator=generator, dtype=torch.uint8)
    scale = torch.rand(ROWS, groups, generator=generator).half()
    minimum = torch.randn(ROWS, groups, generator=generator).half()
    zero = torch.randint(0, 2**bits, (ROWS, groups), generator=generator, dtype=torch.uint8)
    return IntegerWeight.of(
        codes, scale, None if packed else minimum, zero if packed else None, group
    )


def by_the_formula(inputs: Tensor, quantizer: RowQuantizer, weight: IntegerWeight) -> np.ndarray:
    """docs/format.md, with whole numbers of numpy and fp32 roundings one by one."""
    rows, columns = quantizer.quantize(inputs), inputs.shape[1]
    q = quantizer.centred(rows).numpy().astype(np.int64)
    c = weight.codes.numpy().astype(np.int64) + weight.offset
    width = segment_width(columns, quantizer.group, weight.group)
    found = np.zeros((len(q), len(c)), np.float32)
    for start in range(0, columns, width):
        part = slice(start, start + width)
        at, place = start // weight.group, start // quantizer.group if quantizer.group else 0
        products, sums = q[:, part] @ c[:, part].T, q[:, part].sum(1)[:, None]
        scale = weight.scale[:, at].numpy()
        if weight.zero is not None:
            term = (products - sums * weight.zero[:, at].numpy()).astype(np.float32) * scale
        else:
            assert weight.minimum is not None
            term = products.astype(np.float32) * scale
            term = term + weight.minimum[:, at].numpy() * sums.astype(np.float32)
        found = (
            found + term * rows.scale[:, place, None].numpy()
            if start
            else (term * rows.scale[:, place, None].numpy())
        )
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([4, 8]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 70),
    st.sampled_from([0, 8, 16, 24, 1000]),
    st.sampled_from([8, 16, 24, 128]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_is_the_formula_bit_for_bit(
    bits: int, weight_bits: int, columns: int, group: int, weight_group: int,
    packed: bool, asymmetric: bool, seed: int,
) -> None:  # fmt: skip
    quantizer = RowQuantizer(bits, group, "asymmetric" if asymmetric else "symmetric")  # type: ignore[arg-type]
    weight = weight_of(columns, weight_group, weight_bits, packed=packed, seed=seed)
    inputs = torch.randn(TOKENS, columns, generator=drawn(seed + 1))
    found = integer_linear(quantizer.quantize(inputs), quantizer.group, weight)
    assert found.numpy().tobytes() == by_the_formula(inputs, quantizer, weight).tobytes()


def test_sums_are_those_of_whole_numbers_and_not_of_floats() -> None:
    """A sum of more than 2^24: in fp32 the small products behind the large ones would be lost."""
    columns = 4096
    codes = torch.full((1, columns), 255, dtype=torch.uint8)
    inputs = torch.full((1, columns), 127.0)
    codes[0, 2048:], inputs[0, 2048:] = 0, 0.0
    codes[0, 2048 : 2048 + 300], inputs[0, 2048 : 2048 + 300] = 1, 1.0
    weight = IntegerWeight.of(
        codes, torch.ones(1, 1), None, torch.zeros(1, 1, dtype=torch.uint8), columns
    )
    quantizer = RowQuantizer(8)
    rows = quantizer.quantize(inputs)
    assert float(rows.scale) == 1
    exact = 2048 * 127 * 255 + 300
    assert float(integer_linear(rows, 0, weight)) == float(torch.tensor(exact).float())
    one_by_one = torch.zeros(())
    for product in (rows.codes.float() * codes.float())[0]:
        one_by_one = one_by_one + product
    assert float(one_by_one) != exact


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(0, 300), st.integers(1, 300))
def test_segments_cut_no_group(columns: int, first: int, second: int) -> None:
    width = segment_width(columns, first, second)
    assert width <= columns
    for group in (first, second):
        for start in range(0, columns, width) if 0 < group < columns else ():
            last = min(start + width, columns) - 1
            assert start // group == last // group


def test_a_long_row_is_cut_where_a_product_would_not_fit() -> None:
    assert segment_width(1 << 18, 0, 1 << 20) == 1 << 16
    assert segment_width(1 << 18, 0, 3 << 15) == 1 << 15


@pytest.mark.parametrize("block", [None, 1, 3])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_attention_is_summed_over_heads_and_queries(block: int | None, key_heads: int) -> None:
    generator = drawn(0)
    query = torch.randn(2, 6, 4, 8, generator=generator)
    key = torch.randn(2, 6, key_heads, 8, generator=generator)
    segments = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 2, 2, 2, 2]])
    found = attention_mass(query, key, segments, block)
    torch.testing.assert_close(found.sum(1), torch.full((2,), 24.0))
    values = torch.eye(6)[None, :, None].expand(2, 6, key_heads, 6)
    place = torch.arange(6) // (block or 6)
    seen = (segments[:, :, None] == segments[:, None, :]) & (place[:, None] >= place[None])
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), values.transpose(1, 2),
        attn_mask=seen[:, None], enable_gqa=True,
    )  # fmt: skip
    torch.testing.assert_close(found, mixed.sum((1, 2)))
