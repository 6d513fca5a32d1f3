"""Sums over all samples, of which every rank has seen a part."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from qdc.distributed.world import World


class Accumulator(Protocol):
    """Something that adds up over tokens."""

    def sums(self) -> list[Tensor]:
        """Everything that it has added up, the tensors themselves: all are plain sums."""


class Part(NamedTuple):
    """Sums that the same ranks need."""

    owners: Sequence[int]
    """At least one; in all other ranks the sums are spoilt."""
    accumulators: Sequence[Accumulator]
    narrow: bool = False
    """Whether matrices travel in fp32, half as many bytes, and are added up so."""


def accumulate(world: World, parts: Sequence[Part], add: Callable[[], None]) -> None:
    """Add this rank's part up, then give the sums over all ranks to their owners.

    The sums of a part are reduced to one owner, which hands them on to the others: a stage has few
    layers. In a world that is ordered, each rank goes on with the sums of the one before it
    instead, so that all additions are those of a single process, in its order.

    Args:
        world: the ranks.
        parts: what is to be added up, and where it is needed. In a world that is ordered all of it
            travels as it is.
        add: adds the values of this rank's samples to all of them.
    """
    if world.size == 1:
        add()
        return
    needed = [(part, [t for each in part.accumulators for t in each.sums()]) for part in parts]
    last = world.size - 1
    if world.ordered:
        for turn in range(world.size):
            if world.rank == turn:
                with world.by_itself():  # the others wait, and cannot meet this one
                    add()
            world.agree()
            if turn < last:
                world.hand([tensor for _, sums in needed for tensor in sums], turn, turn + 1)
    else:
        add()
        world.agree()
    for part, sums in needed:
        source = last if world.ordered else part.owners[0]
        moved = _narrowed(sums) if part.narrow and not world.ordered else sums
        if not world.ordered:
            world.reduce(moved, source)
        for owner in part.owners:
            if owner != source:
                world.hand(moved, source, owner)
        if world.rank in part.owners:
            for tensor, found in zip(sums, moved, strict=True):
                if tensor is not found:
                    tensor.copy_(found)


def _narrowed(sums: Sequence[Tensor]) -> list[Tensor]:
    """Matrices in fp32; counts, which are exact and small, as they are."""
    return [tensor.float() if tensor.ndim > 1 else tensor for tensor in sums]
