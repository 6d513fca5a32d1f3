"""Linears of whole numbers: exact sums, rounded as the format says, and not as floats would be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.integer_linear import IntegerWeight, integer_linear, segment_width
from qdc.numerics.rowquantizer import RowCodes, RowQuantizer

ROWS, TOKENS = 3, 4


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


Parts = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def weight_of(columns: int, group: int, bits: int, *, packed: bool, seed: int) -> Parts:
    """Codes, scales, minima or zero points."""
    generator, groups = drawn(seed), -(-columns // group)
    codes = torch.randint(0, 2**bits, (ROWS, columns), generator=generator, dtype=torch.uint8)
    scale = torch.rand(ROWS, groups, generator=generator).half()
    minimum = torch.randn(ROWS, groups, generator=generator).half()
    zero = torch.randint(0, 2**bits, (ROWS, groups), generator=generator, dtype=torch.uint8)
    return codes, scale, None if packed else minimum, zero if packed else None


def by_the_formula(inputs: Tensor, quantizer: RowQuantizer, parts: Parts, group: int) -> np.ndarray:
    """docs/format.md, with whole numbers of numpy and fp32 roundings one by one."""
    rows, columns = quantizer.quantize(inputs), inputs.shape[1]
    codes, scales, minima, zeros = (None if t is None else t.numpy() for t in parts)
    assert codes is not None
    assert scales is not None
    q, c = quantizer.centred(rows).numpy().astype(np.int64), codes.astype(np.int64)
    width = segment_width(columns, quantizer.group, group)
    found = np.zeros((len(q), len(c)), np.float32)
    for start in range(0, columns, width):
        part = slice(start, start + width)
        at, place = start // group, start // quantizer.group if quantizer.group else 0
        products, sums = q[:, part] @ c[:, part].T, q[:, part].sum(1)[:, None]
        scale = scales[:, at].astype(np.float32)
        if zeros is not None:
            term = (products - sums * zeros[:, at].astype(np.int64)).astype(np.float32) * scale
        else:
            assert minima is not None
            term = products.astype(np.float32) * scale
            term = term + minima[:, at].astype(np.float32) * sums.astype(np.float32)
        term = term * rows.scale[:, place, None].numpy()
        found = found + term if start else term
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
    parts = weight_of(columns, weight_group, weight_bits, packed=packed, seed=seed)
    weight = IntegerWeight.of(*parts, weight_group, group)
    inputs = torch.randn(TOKENS, columns, generator=drawn(seed + 1))
    found = integer_linear(quantizer.quantize(inputs), group, weight)
    wanted = by_the_formula(inputs, quantizer, parts, weight_group)
    assert found.numpy().tobytes() == wanted.tobytes()
    codes, scale, minimum, zero = parts
    place = torch.arange(columns) // weight_group
    dense = scale.float()[:, place] * codes.float()
    if minimum is not None:
        dense = dense + minimum.float()[:, place]
    if zero is not None:
        dense = scale.float()[:, place] * (codes.float() - zero.float()[:, place])
    assert torch.equal(weight.dense(), dense)


def test_tiles_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (
        torch.randint(0, 256, (300, 64), generator=drawn(0), dtype=torch.uint8),
        torch.rand(300, 4, generator=drawn(1)), None, torch.full((300, 4), 90, dtype=torch.uint8),
    )  # fmt: skip
    weight, quantizer = IntegerWeight.of(*parts, 16), RowQuantizer(8)
    rows = quantizer.quantize(torch.randn(3, 64, generator=drawn(2)))
    whole = integer_linear(rows, 0, weight)
    monkeypatch.setattr("qdc.numerics.integer_linear.NEAR", 1)
    assert torch.equal(integer_linear(rows, 0, weight), whole)


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


@pytest.mark.parametrize(("code", "zero"), [(0, 255), (255, 0)])
def test_sums_of_the_longest_segment_fit(code: int, zero: int) -> None:
    """Zero points times sums of inputs pass 32 bits where a grid spans 65536 columns."""
    columns = 1 << 16
    codes = torch.full((1, columns), code, dtype=torch.uint8)
    codes[0, 0] = 128  # neither all codes nor their differences from the zero point fit 8 bits
    parts = codes, torch.ones(1, 1), None, torch.full((1, 1), zero, dtype=torch.uint8)
    rows = RowCodes(
        torch.full((1, columns), 127, dtype=torch.int8),
        torch.ones(1, 1),
        torch.full((1, 1), -128, dtype=torch.int8),
    )
    exact = 255 * int(codes.to(torch.int64).sum() - columns * zero)
    found = integer_linear(rows, 0, IntegerWeight.of(*parts, columns))
    assert float(found) == float(torch.tensor(exact).float())


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
