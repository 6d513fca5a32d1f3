"""Parts of a block: what each map marks, counted and searched by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.numerics.partbinary import residual_error
from qdc.numerics.partition import (
    column_partition,
    element_quantile,
    magnitude_split,
    salient_columns,
)
from tests.support.units import noise


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.data())
def test_exactly_so_many_elements_are_marked_and_none_below_the_others(
    rows: int, columns: int, levels: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, rows * columns))
    scores = torch.tensor(
        data.draw(
            st.lists(st.integers(0, levels), min_size=rows * columns, max_size=rows * columns)
        ),
        dtype=torch.float32,
    ).reshape(rows, columns)
    marked = element_quantile(scores, count)
    assert int(marked.sum()) == count
    if 0 < count < rows * columns:
        assert scores[marked].min() >= scores[~marked].max()
        flat = marked.flatten()[scores.flatten() == scores[marked].min()].int()
        assert torch.equal(flat, flat.sort(descending=True).values)  # of equal ones the first


def test_more_elements_than_there_are_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="cannot mark 7 of 6 elements"):
        element_quantile(torch.ones(2, 3), 7)


def residual_error_by_hand(values: np.ndarray, mask: np.ndarray, order: int) -> float:
    """Row by row: mean, mean distance from it, and again on what is left."""
    total = 0.0
    for row, chosen in zip(values, mask, strict=True):
        rest = row[chosen]
        if not len(rest):
            continue
        for _ in range(order):
            centred = rest - rest.mean()
            rest = centred - np.abs(centred).mean() * np.where(centred >= 0, 1, -1)
        total += float((rest**2).sum())
    return total


def test_the_best_number_of_salient_columns_is_found() -> None:
    values = noise(12, 16) * torch.linspace(0.2, 3, 16)
    scores = values.abs().sum(0)
    wide, falling = values.double().numpy(), scores.argsort(descending=True).numpy()
    everything = np.ones((12, 16), dtype=bool)
    errors = []
    for k in range(1, 11):
        sides = wide[:, falling[:k]], wide[:, falling[k:]]
        errors.append(sum(residual_error_by_hand(s, everything[:, : s.shape[1]], 2) for s in sides))
    chosen = salient_columns(scores, values, 10, residual_error)
    best = int(np.argmin(errors)) + 1
    assert sorted(chosen.nonzero().flatten().tolist()) == sorted(falling[:best].tolist())
    assert not salient_columns(scores, values, 0, residual_error).any()
    assert not salient_columns(scores[:1], values[:, :1], 10, residual_error).any()
    assert salient_columns(scores[:2], values[:, :2], 10, residual_error).sum() == 1


@pytest.mark.parametrize("zeros", [0, 30])
def test_the_best_percentile_is_found(zeros: int) -> None:
    values = noise(9, 20)
    magnitude = values.abs()
    pool = np.concatenate([np.zeros(zeros), magnitude.double().numpy().ravel()])
    errors, masks = [], []
    for share in np.linspace(0.1, 0.9, 17):
        large = magnitude.double().numpy() >= np.quantile(pool, share)
        masks.append(large)
        wide = values.double().numpy()
        errors.append(sum(residual_error_by_hand(wide, side, 1) for side in (large, ~large)))
    found = magnitude_split(magnitude, values, 17, 1, residual_error, zeros)
    assert np.array_equal(found.numpy(), masks[int(np.argmin(errors))])


def test_no_split_and_nothing_to_split() -> None:
    assert not magnitude_split(torch.ones(2, 3), torch.ones(2, 3), 0, 1, residual_error).any()
    empty = torch.empty(2, 0)
    assert magnitude_split(empty, empty, 9, 1, residual_error).shape == (2, 0)


def test_parts_cover_a_block_without_overlap() -> None:
    salient, large = torch.tensor([False, True, False]), torch.tensor([[True, True, False]])
    assert column_partition(salient, large, salient_classes=False).tolist() == [[1, 2, 0]]
    assert column_partition(salient, large, salient_classes=True).tolist() == [[1, 3, 0]]
