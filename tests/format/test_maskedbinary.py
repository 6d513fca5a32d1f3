"""The masked binary codec: exact round trips, bytes, damage."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.maskedbinary import MaskedBinary

LLADA = {(4096, 4096): 4, (12288, 4096): 2, (4096, 12288): 1}


@st.composite
def codecs(draw: st.DrawFn) -> MaskedBinary:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    elements = rows * columns
    salient = draw(st.sampled_from([0, elements]) | st.integers(0, elements))
    group = draw(st.sampled_from([0, 8, 16, 64]))
    return MaskedBinary(rows=rows, columns=columns, group=group, salient=salient)


def random_working(codec: MaskedBinary, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (codec.rows, codec.columns)
    marked = torch.zeros(codec.rows * codec.columns, dtype=torch.uint8)
    marked[torch.randperm(len(marked), generator=generator)[: codec.salient]] = 1
    marked = marked.reshape(shape)
    signs = (torch.randint(2, shape, generator=generator) * 2 - 1).to(torch.int8)
    codes = torch.randint(256, shape, generator=generator).to(torch.uint8)
    scales = {
        suffix: torch.randn(codec.rows, len(codec.groups), generator=generator).half()
        for suffix in ("mean", "scale", "minimum", "step")
    }
    return {
        "marked": marked,
        "signs": signs.masked_fill(marked > 0, -1),
        "codes": codes.masked_fill(marked == 0, 0),
        **scales,
    }


@settings(max_examples=60, deadline=None)
@given(codecs(), st.integers(0, 999))
def test_bitmap_and_streams_come_back(codec: MaskedBinary, seed: int) -> None:
    working = random_working(codec, seed)
    stored = codec.pack_exactly(working, "layer")
    assert sum(tensor.nbytes for tensor in stored.values()) == codec.nbytes
    unpacked = codec.unpack(stored)
    assert set(unpacked) == set(working)
    assert all(torch.equal(unpacked[name], working[name]) for name in working)
    dense = codec.dense(working)
    r, j = seed % codec.rows, seed % codec.columns
    g = j // (codec.group or codec.columns)
    mean, scale, minimum, step = (
        working[suffix][r, g].float() for suffix in ("mean", "scale", "minimum", "step")
    )
    expected = step * working["codes"][r, j] + minimum
    if not working["marked"][r, j]:
        expected = scale * working["signs"][r, j] + mean
    assert dense[r, j] == expected


def test_sizes_of_llada_8b_are_those_of_honest_accounts() -> None:
    stored = weights = 0
    for (rows, columns), count in LLADA.items():
        salient = rows * columns - round(0.9 * rows * columns)
        codec = MaskedBinary(rows=rows, columns=columns, group=0, salient=salient)
        stored += 8 * count * codec.nbytes
        weights += count * rows * columns
        assert codec.payload_bits / (rows * columns) == pytest.approx(1.7, abs=1e-6)
    assert stored / weights == pytest.approx(2.713, abs=5e-4)


def test_a_bitmap_that_marks_another_number_is_refused() -> None:
    codec = MaskedBinary(rows=3, columns=20, group=0, salient=7)
    stored = codec.pack_exactly(random_working(codec, 1), "layer")
    stored["marked"] = torch.full_like(stored["marked"], 255)
    with pytest.raises(InvalidArtifact, match="60 elements are marked, the configuration says 7"):
        codec.check(stored, "layer")


@pytest.mark.parametrize("fields", [{"group": -1}, {"salient": 61}, {"salient": -1}])
def test_fields_out_of_range_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        MaskedBinary.model_validate({"rows": 3, "columns": 20, "group": 0, "salient": 0, **fields})
