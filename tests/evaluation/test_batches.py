"""Batches shrink where logits are many, and no figure depends on it."""

import pytest

from qdc.evaluation.batches import fitting_batch
from qdc.evaluation.next_token import compare_next
from tests.evaluation.test_agreement import Table, windows


def test_logits_of_a_batch_are_bounded() -> None:
    assert fitting_batch(16, 256, 2048) == 16
    assert fitting_batch(16, 256, 49152) == 5
    assert fitting_batch(16, 8192, 126464) == 1, "one window has to be possible"


@pytest.mark.parametrize("batch", [1, 3])
def test_figures_are_those_of_any_batch(batch: int) -> None:
    found = [compare_next(Table(0), Table(1), windows(), each) for each in (batch, 16)]
    assert found[0] == found[1]
