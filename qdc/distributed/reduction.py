"""Sums over all samples, of which every rank has seen a part."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from qdc.distributed.world import World


class Accumulator(Protocol):
    """Something that adds up over tokens."""

    def sums(self) -> list[Tensor]:
        """Everything that it has added up, the tensors themselves: all are plain sums."""


def accumulate(
    world: World,
    parts: Sequence[tuple[Sequence[int], Sequence[Accumulator]]],
    add: Callable[[], None],
) -> None:
    """Add this rank's part up, then give the sums over all ranks to their owners.

    The sums of a part are reduced to one owner, which hands them on to the others: a stage has few
    layers. In a world that is ordered, each rank goes on with the sums of the one before it
    instead, so that all additions are those of a single process, in its order.

    Args:
        world: the ranks.
        parts: ranks that need sums, at least one, and the accumulators that hold them; in all other
            ranks they are spoilt.
        add: adds the values of this rank's samples to all of them.
    """
    if world.size == 1:
        add()
        return
    needed = [
        (owners, [tensor for accumulator in accumulators for tensor in accumulator.sums()])
        for owners, accumulators in parts
    ]
    last = world.size - 1
    if world.ordered:
        for turn in range(world.size):
            if world.rank == turn:
                add()
            world.agree()
            if turn < last:
                world.hand([tensor for _, sums in needed for tensor in sums], turn, turn + 1)
    else:
        add()
        world.agree()
    for owners, sums in needed:
        source = last if world.ordered else owners[0]
        if not world.ordered:
            world.reduce(sums, source)
        for owner in owners:
            if owner != source:
                world.hand(sums, source, owner)
