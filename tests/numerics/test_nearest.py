"""nearest: what argmin finds, ties included."""

import pytest
import torch
from torch import Tensor

from qdc.numerics.nearest import nearest_levels, nearest_places


def coarse(*shape: int) -> Tensor:
    """Few different numbers, so that there are ties."""
    drawn = torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(len(shape)))
    return drawn.float()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 16])
def test_levels_are_those_that_argmin_finds(count: int) -> None:
    levels, target = coarse(count, 500), coarse(500)
    choice = (levels - target).abs().argmin(0, keepdim=True)
    assert torch.equal(nearest_levels(levels, target), levels.gather(0, choice)[0])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 16])
def test_places_are_those_that_argmin_finds(count: int) -> None:
    distance = coarse(count, 30, 20).abs()
    assert torch.equal(nearest_places(distance).long(), distance.argmin(0))
