"""The divergence of every count, against one full product for each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.blocks import block_slices
from qdc.numerics.group_moves import group_counts, moved_orders
from qdc.numerics.output_divergence import DivergenceAccumulator, WrittenOut, write_out
from tests.support.units import noise

RANKING = (2, 0, 3, 1)
SLICES = block_slices(4 * 8 + 4, 8)


def by_hand(weight: Tensor, written: WrittenOut, inputs: Tensor, shares: Tensor) -> list[float]:
    forms = dict(zip((1, 2, 3), written, strict=True))
    wanted = (inputs @ weight.T).double().softmax(-1)
    found = []
    for count in range(3):
        orders = moved_orders(RANKING, count, len(SLICES), 2)
        parts = [forms[bits][:, part] for bits, part in zip(orders, SLICES, strict=True)]
        got = (inputs @ torch.cat(parts, 1).T).double().softmax(-1)
        rise = (got * (got / wanted).log()).sum(-1)
        found.append(float((rise * shares).sum() / shares.sum()))
    return found


@pytest.mark.parametrize("binary", [False, True])
def test_it_is_that_of_a_full_product_for_each_count(
    binary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, inputs = 6 * noise(10, 36), noise(30, 36, 1) * 6
    written = write_out(weight, SLICES, 2, binary=binary)
    monkeypatch.setattr(DivergenceAccumulator, "OUTPUTS", 70)
    shares = torch.rand(30, generator=torch.Generator().manual_seed(2))
    every, weighted, half = (
        DivergenceAccumulator(weight, written, SLICES, RANKING, counts)
        for counts in (range(3), range(3), range(1, 2))
    )
    for part in range(0, 30, 12):
        batch = slice(part, part + 12)
        every.add(inputs[batch])
        half.add(inputs[batch])
        weighted.add(inputs[batch], shares[batch])
    expected = by_hand(weight, written, inputs, torch.ones(30))
    assert every.value().tolist() == pytest.approx(expected, rel=1e-4)
    assert half.value().tolist() == pytest.approx(expected[1:2], rel=1e-4)
    counted = by_hand(weight, written, inputs, shares)
    assert weighted.value().tolist() == pytest.approx(counted, rel=1e-4)


def test_a_weight_written_out_as_it_is_diverges_by_nothing() -> None:
    weight = noise(10, 36)
    found = DivergenceAccumulator(
        weight, WrittenOut(weight, weight, weight), SLICES, RANKING, range(3)
    )
    found.add(noise(30, 36, 1))
    assert found.value().tolist() == [0, 0, 0]


@given(st.integers(0, 40), st.booleans(), st.data())
def test_the_mean_stays_the_base_and_salience_decides(
    full: int, release: bool, data: st.DataObject
) -> None:
    counts = group_counts(full, release=release)
    assert counts[0] == int(release and full > 3)
    assert counts[-1] == (max(0, full // 2 - 1) if release else full // 2)
    ranking = data.draw(st.permutations(range(full)))
    count = data.draw(st.sampled_from(counts))
    orders = moved_orders(ranking, count, full + 1, 2)
    assert sum(orders) == 2 * (full + 1)
    assert orders[full] == 2
    assert [orders[place] for place in ranking] == sorted(orders[:full])


def test_what_cannot_move_is_refused() -> None:
    weight = noise(2, 36)
    written = WrittenOut(weight, weight, weight)
    for counts in (range(0), range(4), range(2, 3)):
        with pytest.raises(ValueError, match="do not suit 4 groups"):
            DivergenceAccumulator(weight, written, SLICES, RANKING, counts)
    with pytest.raises(ValueError, match="cannot move"):
        moved_orders(RANKING, 3, 5, 2)
    with pytest.raises(ValueError, match="zero tokens"):
        DivergenceAccumulator(weight, written, SLICES, RANKING, range(3)).value()
