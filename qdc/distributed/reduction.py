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
    owners: Sequence[int],
    accumulators: Sequence[Accumulator],
    add: Callable[[], None],
) -> None:
    """Add this rank's part up, then give the sums over all ranks to the owners.

    The sums are reduced to one owner, which hands them on to the others: a stage has few layers. In
    a world that is ordered, each rank goes on with the sums of the one before it instead, so that
    all additions are those of a single process, in its order.

    Args:
        world: the ranks.
        owners: ranks that need the sums, at least one; elsewhere they are spoilt.
        accumulators: what ``add`` adds to.
        add: adds the values of this rank's samples.
    """
    if world.size == 1:
        add()
        return
    sums = [tensor for accumulator in accumulators for tensor in accumulator.sums()]
    if world.ordered:
        source = world.size - 1
        for turn in range(world.size):
            if world.rank == turn:
                add()
            world.agree()
            if turn < source:
                world.hand(sums, turn, turn + 1)
    else:
        source = owners[0]
        add()
        world.agree()
        world.reduce(sums, source)
    for owner in owners:
        if owner != source:
            world.hand(sums, source, owner)
