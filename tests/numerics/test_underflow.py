"""What counts as a block that fp16 scales have lost."""

import torch
from torch import Tensor

from qdc.numerics.underflow import may_vanish, vanished

PARTS = (slice(0, 4), slice(4, 8))


def block(size: float) -> Tensor:
    return size * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def lost(left: Tensor, right: Tensor, dense: Tensor | None = None) -> list[int]:
    weight = torch.cat((left, right), 1)
    return vanished(weight, torch.zeros_like(weight) if dense is None else dense, PARTS)


def test_a_block_is_lost_whose_decoded_error_is_all_of_it() -> None:
    assert lost(block(1e-8), block(1e-8)) == [0, 1]
    weight = torch.cat((block(1e-8), block(1e-8)), 1)
    assert lost(block(1e-8), block(1e-8), weight * 0.5) == []
    assert lost(block(1e-8), block(1e-8), weight * -1) == [0, 1]


def test_zeros_and_what_is_nothing_beside_the_rest_are_not_lost() -> None:
    assert lost(block(0), block(1e-8)) == [1]
    assert lost(block(1e-8), block(1e-3)) == []
    assert lost(block(1e-8), block(1e-6)) == [0, 1]


def test_large_blocks_are_never_lost() -> None:
    """A quantizer may set inputs to zero that carry nothing; no fp16 scale made it do so."""
    assert lost(block(1), block(1)) == []
    assert not may_vanish(block(100))
    assert not may_vanish(block(0))
    assert may_vanish(block(1e-8))
