"""The multi-binary codec: exact round trips, predicted bytes, slices that engines take."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.multibinary import MultiBinary
from qdc.numerics.blocks import block_widths
from qdc.numerics.components import Components, dense
from qdc.numerics.scalecodes import decode_scales, encode_scales

Stored = dict[str, Tensor]
FORMS: list[dict[str, Any]] = [
    {"scale_bits": 16},
    {"scale_bits": 8},
    {"scale_bits": 8, "scale_code": "logarithmic"},
]


def random_blocks(codec: MultiBinary, seed: int) -> list[Components]:
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    widths = block_widths(codec.columns, codec.block)
    for order, width in zip(codec.orders, widths, strict=True):
        signs = torch.randint(2, (order, codec.rows, width), generator=generator) * 2 - 1
        rows = torch.rand(order, codec.rows, generator=generator)
        columns = torch.rand(order, width, generator=generator)
        scales = (scale.half().float() for scale in (rows, columns))
        if codec.scale_bits == 8:
            code = codec.scale_code
            scales = (decode_scales(*encode_scales(scale, code), code) for scale in scales)
        blocks.append(Components(signs.to(torch.int8), *scales))
    return blocks


def written_out(blocks: list[Components]) -> Tensor:
    return torch.cat([dense(block) for block in blocks], dim=1)


@st.composite
def codecs(draw: st.DrawFn, blocks: int = 4) -> MultiBinary:
    block = 8 * draw(st.integers(1, 3))
    columns = draw(st.integers(1, blocks * block))
    count = -(-columns // block)
    orders = tuple(draw(st.integers(1, 4)) for _ in range(count))
    return MultiBinary(
        rows=draw(st.integers(1, 6)),
        columns=columns,
        block=block,
        orders=orders,
        **draw(st.sampled_from(FORMS)),
    )


def packed(codec: MultiBinary, seed: int) -> tuple[Stored, Tensor]:
    blocks = random_blocks(codec, seed)
    return codec.pack(MultiBinary.working(blocks, codec.block)), written_out(blocks)


def decoded(codec: MultiBinary, stored: Stored) -> Tensor:
    codec.check(stored, "layer")
    return codec.dense(codec.unpack(stored))


@given(codecs(), st.integers(0, 99))
def test_nothing_is_lost(codec: MultiBinary, seed: int) -> None:
    blocks = random_blocks(codec, seed)
    working = MultiBinary.working(blocks, codec.block)
    stored = codec.pack(working)
    assert torch.equal(decoded(codec, stored), written_out(blocks))
    unpacked = codec.unpack(stored)
    assert all(torch.equal(unpacked[name], working[name]) for name in working)
    again = codec.pack(unpacked)
    assert all(torch.equal(again[name], stored[name]) for name in stored)


@given(codecs(), st.integers(0, 99))
def test_the_predicted_bytes_are_the_bytes(codec: MultiBinary, seed: int) -> None:
    stored, _ = packed(codec, seed)
    assert sum(tensor.nbytes for tensor in stored.values()) == codec.nbytes
    planes = sum(codec.orders)
    signs, scales = codec.rows * planes * codec.block // 8, planes * (codec.rows + codec.block)
    scales = 2 * scales if codec.scale_bits == 16 else scales + 4 * planes
    assert codec.nbytes == signs + scales + len(codec.orders)
    widths = block_widths(codec.columns, codec.block)
    signs_kept = sum(o * w for o, w in zip(codec.orders, widths, strict=True))
    assert codec.payload_bits == codec.rows * signs_kept


@given(codecs(), st.integers(0, 99), st.data())
def test_rows_are_sliced_by_narrow(codec: MultiBinary, seed: int, data: st.DataObject) -> None:
    stored, weight = packed(codec, seed)
    start = data.draw(st.integers(0, codec.rows - 1))
    count = data.draw(st.integers(1, codec.rows - start))
    part = {
        **stored,
        "planes": stored["planes"].narrow(0, start, count),
        "row_scale": stored["row_scale"].narrow(0, start, count),
    }
    smaller = codec.model_copy(update={"rows": count})
    assert torch.equal(decoded(smaller, part), weight[start : start + count])


@given(codecs(), st.integers(0, 99), st.data())
def test_columns_are_sliced_by_narrow_at_block_boundaries(
    codec: MultiBinary, seed: int, data: st.DataObject
) -> None:
    stored, weight = packed(codec, seed)
    first = data.draw(st.integers(0, len(codec.orders) - 1))
    count = data.draw(st.integers(1, len(codec.orders) - first))
    orders = codec.orders[first : first + count]
    before, planes = sum(codec.orders[:first]), sum(orders)
    part = {
        name: tensor.narrow(1, before, planes)
        for name, tensor in stored.items()
        if name != "orders"
    }
    part["orders"] = stored["orders"].narrow(0, first, count)
    left = first * codec.block
    right = min(left + count * codec.block, codec.columns)
    smaller = codec.model_copy(update={"columns": right - left, "orders": orders})
    assert torch.equal(decoded(smaller, part), weight[:, left:right])


@given(codecs(), st.integers(1, 5), st.integers(0, 99))
def test_layers_of_a_stage_are_joined_by_cat(codec: MultiBinary, rows: int, seed: int) -> None:
    other = codec.model_copy(update={"rows": rows})
    (one, first), (two, second) = packed(codec, seed), packed(other, seed + 1)
    # column scales differ between layers: an engine holds one row of them for each fused part
    joined = {name: torch.cat([one[name], two[name]]) for name in one if name != "orders"}
    assert joined["col_scale"].shape[0] == 2
    parts = ((0, codec.rows, first), (codec.rows, rows, second))
    for index, (start, count, weight) in enumerate(parts):
        part = {
            "planes": joined["planes"].narrow(0, start, count),
            "row_scale": joined["row_scale"].narrow(0, start, count),
            "orders": one["orders"],
        }
        part |= {name: joined[name].narrow(0, index, 1) for name in joined.keys() - part.keys()}
        smaller = codec.model_copy(update={"rows": count})
        assert torch.equal(decoded(smaller, part), weight)


def test_bits_and_padding_are_where_the_format_says() -> None:
    codec = MultiBinary(rows=1, columns=11, block=8, orders=(1, 2))
    signs = [torch.ones(1, 1, 8), -torch.ones(2, 1, 3)]
    signs[0][0, 0, 1] = -1
    signs[1][1, 0, 0] = 1
    blocks = [
        Components(s.to(torch.int8), torch.ones(len(s), 1), torch.full((len(s), s.shape[2]), 2.0))
        for s in signs
    ]
    stored = codec.pack(MultiBinary.working(blocks, 8))
    assert stored["planes"].tolist() == [[[0b11111101], [0b00000000], [0b00000001]]]
    assert stored["row_scale"].tolist() == [[1, 1, 1]]
    assert stored["col_scale"].tolist() == [[[2] * 8, [2] * 3 + [0] * 5, [2] * 3 + [0] * 5]]
    assert stored["orders"].tolist() == [1, 2]
    assert decoded(codec, stored).tolist() == [[2, -2, 2, 2, 2, 2, 2, 2, 0, -4, -4]]


@pytest.mark.parametrize(
    "settings",
    [
        {"orders": (0,)},
        {"orders": (5,)},
        {"orders": (2, 2)},
        {"orders": ()},
        {"block": 12},
        {"block": 1 << 17},
        {"rows": 1 << 40},
        {"columns": -8},
        {"more": 1},
        {"scale_bits": 4},
        {"scale_bits": "8"},
        {"scale_bits": None},
        {"scale_code": "logarithmic"},
        {"scale_bits": 8, "scale_code": "cubic"},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        MultiBinary.model_validate(
            {"rows": 4, "columns": 8, "block": 8, "orders": (2,), **settings}
        )


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"orders": torch.tensor([2, 1], dtype=torch.uint8)}, "the stored orders are not those"),
        ({"row_scale": torch.full((2, 3), float("nan")).half()}, "row_scale holds NaN"),
        ({"col_scale": torch.full((1, 3, 8), float("inf")).half()}, "col_scale holds NaN"),
        ({"row_scale": torch.zeros(2, 3)}, r"row_scale is f32\[2,3\], the format says f16\[2,3\]"),
        ({"planes": torch.zeros(2, 3, 2, dtype=torch.uint8)}, r"planes is u8\[2,3,2\]"),
        ({"more": torch.zeros(1)}, "the stored tensors are"),
    ],
)
def test_stored_tensors_are_checked(change: dict[str, Tensor], what: str) -> None:
    codec = MultiBinary(rows=2, columns=16, block=8, orders=(1, 2))
    stored, _ = packed(codec, 0)
    with pytest.raises(InvalidArtifact, match=what) as caught:
        codec.check({**stored, **change}, "h0.q")
    assert caught.value.where == ("h0.q",)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"row_peak": torch.full((1, 3), float("nan")).half()}, "row_peak holds NaN"),
        ({"col_peak": torch.full((1, 3, 1), -float("inf")).half()}, "col_peak holds NaN"),
        ({"row_peak": torch.ones(1, 3)}, r"row_peak is f32\[1,3\], the format says f16\[1,3\]"),
        ({"col_peak": torch.ones(1, 3).half()}, r"col_peak is f16\[1,3\], the format says"),
        ({"row_scale": torch.ones(2, 3).half()}, r"row_scale is f16\[2,3\], the format says u8"),
        ({"row_peak": None}, "the stored tensors are"),
        ({"col_peak": None}, "the stored tensors are"),
    ],
)
def test_peaks_are_checked(change: dict[str, Tensor | None], what: str) -> None:
    codec = MultiBinary(rows=2, columns=16, block=8, orders=(1, 2), scale_bits=8)
    stored, _ = packed(codec, 0)
    changed = {name: t for name, t in {**stored, **change}.items() if t is not None}
    with pytest.raises(InvalidArtifact, match=what):
        codec.check(changed, "h0.q")


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("peak", [-2.0, 0.0, 65504.0, 2.0**-24])
def test_an_odd_peak_gives_finite_weights(peak: float, form: dict[str, Any]) -> None:
    codec = MultiBinary(rows=2, columns=16, block=8, orders=(1, 4), **form)
    stored, _ = packed(codec, 0)
    for name in ("row_peak", "col_peak"):
        stored[name] = torch.full_like(stored[name], peak)
    assert decoded(codec, stored).isfinite().all()


def test_an_entry_without_scale_bits_means_16_and_without_a_code_linear() -> None:
    entry = {"rows": 2, "columns": 16, "block": 8, "orders": (1, 2)}
    assert MultiBinary.model_validate(entry).scale_bits == 16
    old = MultiBinary.model_validate({**entry, "scale_bits": 8})
    assert old.scale_code == "linear"
    assert "scale_code" not in old.model_dump()
    new = old.model_copy(update={"scale_code": "logarithmic"})
    assert MultiBinary.model_validate(new.model_dump()) == new


def test_scales_of_8_bits_save_an_eighth_of_a_bit() -> None:
    """As the specification counts: 0.128 bit a weight at 128 columns and order 2."""
    size = {
        bits: MultiBinary(rows=4096, columns=4096, orders=(2,) * 32, scale_bits=bits).nbytes
        for bits in (8, 16)
    }
    weights = 4096 * 4096
    assert 8 * size[16] / weights == pytest.approx(2.2578, abs=1e-4)
    assert 8 * (size[16] - size[8]) / weights == pytest.approx(0.1288, abs=1e-4)
