"""The partitioned binary codec: exact round trips, its formula, its bytes, what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.partitionedbinary import PartitionedBinary

LLADA = {(4096, 4096): 4, (12288, 4096): 2, (4096, 12288): 1}
"""Shapes of the linears of a block of LLaDA-8B, and how many there are."""


@st.composite
def codecs(draw: st.DrawFn) -> PartitionedBinary:
    columns = draw(st.integers(1, 60))
    return PartitionedBinary(
        rows=draw(st.integers(1, 6)),
        columns=columns,
        block=8 * draw(st.integers(1, 3)),
        form=draw(st.sampled_from(["mean", "column"])),
        salient=draw(st.none() | st.integers(0, columns)),
    )


def random_working(codec: PartitionedBinary, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    count = codec.salient if codec.salient is not None else seed % (codec.columns + 1)
    salient = torch.zeros(codec.columns, dtype=torch.uint8)
    salient[torch.randperm(codec.columns, generator=generator)[:count]] = 1
    signs = torch.randint(2, (codec.rows, 2, codec.columns), generator=generator) * 2 - 1
    working = {"planes": signs.to(torch.int8), "salient": salient}
    for suffix, kind in codec.specification().items():
        if kind.dtype == "f16":
            size = tuple(int(n) for n in kind.shape)
            working[suffix] = torch.randn(size, generator=generator).half()
    if codec.salient:
        classes = torch.randint(2, (codec.rows, codec.salient), generator=generator)
        working["classes"] = classes.to(torch.uint8)
    return working


def by_hand(codec: PartitionedBinary, working: dict[str, Tensor]) -> np.ndarray:
    """The formula of docs/format.md, element by element."""
    get = {suffix: tensor.numpy() for suffix, tensor in working.items()}
    place = np.cumsum(get["salient"]) - 1
    result = np.zeros((codec.rows, codec.columns), dtype=np.float32)
    for r in range(codec.rows):
        for j in range(codec.columns):
            b, (first, second) = j // codec.block, get["planes"][r, :, j].astype(np.float32)
            scales = get["row_scale"][r, b].astype(np.float32)
            columns = np.ones(2, dtype=np.float32)
            if codec.form == "column":
                columns = get["col_scale"][:, j].astype(np.float32)
            if not get["salient"][j]:
                part = int(second > 0)
                value = scales[part] * columns[part] * first
            else:
                part = 2
                if codec.salient is not None and get["classes"][r, place[j]]:
                    part = 3
                    if codec.form == "column":
                        columns = get["sparse_col_scale"][:, place[j]].astype(np.float32)
                k = 2 * part - 2
                value = scales[k] * columns[0] * first + scales[k + 1] * columns[1] * second
            if codec.form == "mean":
                value += get["mean"][r, b, part].astype(np.float32)
            result[r, j] = value
    return result


@settings(max_examples=60, deadline=None)
@given(codecs(), st.integers(0, 999))
def test_nothing_is_lost_and_the_formula_is_the_documented_one(
    codec: PartitionedBinary, seed: int
) -> None:
    working = random_working(codec, seed)
    stored = codec.pack_exactly(working, "layer")
    assert sum(tensor.nbytes for tensor in stored.values()) == codec.nbytes
    unpacked = codec.unpack(stored)
    assert set(unpacked) == set(working)
    assert all(torch.equal(unpacked[name], working[name]) for name in working)
    assert np.array_equal(codec.dense(working).numpy(), by_hand(codec, working))


def bits(form: str, share: float | None) -> float:
    """Effective bits of a block of LLaDA-8B; with classes in such a share of the columns."""
    stored = weights = 0
    for (rows, columns), count in LLADA.items():
        salient = None if share is None else round(share * columns)
        codec = PartitionedBinary(rows=rows, columns=columns, form=form, salient=salient)  # type: ignore[arg-type]
        stored += 8 * count * codec.nbytes
        weights += count * rows * columns
    return stored / weights


@pytest.mark.parametrize(
    ("form", "share", "least", "most"),
    [
        ("mean", None, 2.875, 2.98),  # BiLLM, ARB: nothing is stored twice, so the lower end
        ("column", None, 2.50, 2.60),  # ARB-RC
        ("column", 0.06, 2.75, 2.85),  # with its column-group bitmap
        ("mean", 0.06, 3.25, 3.35),  # ARB-X with it
    ],
)
def test_sizes_of_llada_8b_are_those_of_honest_accounts(
    form: str, share: float | None, least: float, most: float
) -> None:
    assert least <= bits(form, share) <= most


def test_a_wrong_number_of_salient_columns_is_refused() -> None:
    codec = PartitionedBinary(rows=2, columns=20, form="column", salient=3)
    stored = codec.pack_exactly(random_working(codec, 1), "layer")
    stored["salient"] = torch.zeros_like(stored["salient"])
    with pytest.raises(InvalidArtifact, match="0 columns are marked as salient"):
        codec.check(stored, "layer")


@pytest.mark.parametrize(
    "fields", [{"block": 12}, {"block": 1 << 17}, {"form": "row"}, {"salient": 21}, {"salient": -1}]
)
def test_fields_out_of_range_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PartitionedBinary.model_validate({"rows": 2, "columns": 20, "form": "mean", **fields})
