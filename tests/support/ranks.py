"""Several ranks as threads of one process: what they exchange passes through memory."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor

from qdc.distributed.world import World
from qdc.ir.types import TensorRef

R = TypeVar("R")


class Meeting:
    """Where the threads wait for each other."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.slots: list[Any] = [None] * size

    def swap(self, rank: int, given: object) -> list[Any]:
        """What everybody gave, by rank."""
        self.slots[rank] = given
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found


class ThreadWorld(World):
    """A world whose ranks are threads."""

    def __init__(self, meeting: Meeting, rank: int, *, ordered: bool) -> None:
        super().__init__(rank, len(meeting.slots), "cpu", ordered=ordered)
        self.meeting = meeting

    def gather(self, message: bytes) -> list[bytes]:
        return self.meeting.swap(self.rank, message)

    def deliver(
        self, ref: TensorRef, tensor: Tensor | None, source: int, to: Sequence[int], kind: str
    ) -> Tensor:
        found = self.meeting.swap(self.rank, tensor)[source]
        assert tuple(found.shape) == ref.shape
        self.sent += found.nbytes * len(to) * (self.rank == source)
        copy: Tensor = found.clone()
        return copy if self.rank in (source, *to) else torch.empty(0)

    def reduce(self, tensors: Sequence[Tensor], target: int) -> None:
        given = self.meeting.swap(self.rank, [tensor.clone() for tensor in tensors])
        self.sent += sum(tensor.nbytes for tensor in tensors) * (self.rank != target)
        for place, tensor in enumerate(tensors):
            parts = [each[place] for each in given]
            # The wrong way round, and spoilt where it is not wanted: as a library may.
            tensor.copy_(sum(reversed(parts)) if self.rank == target else parts[0] * 7)

    def hand(self, tensors: Sequence[Tensor], source: int, target: int) -> None:
        given = self.meeting.swap(self.rank, [t.clone() for t in tensors])
        self.sent += sum(tensor.nbytes for tensor in tensors) * (self.rank == source)
        if self.rank == target:
            for tensor, value in zip(tensors, given[source], strict=True):
                tensor.copy_(value)


def on_ranks(size: int, work: Callable[[World], R], *, ordered: bool = False) -> list[R]:
    """What ``work`` returns on each rank; an error that a rank is to show is raised."""
    # Threads that are the first to import transformers, and at once, find it half made.
    import_module("transformers").PreTrainedTokenizerFast  # noqa: B018
    meeting = Meeting(size)
    worlds = [ThreadWorld(meeting, rank, ordered=ordered) for rank in range(size)]
    shown: list[Exception] = []

    def call(world: World) -> R | None:
        try:
            return work(world)
        except threading.BrokenBarrierError:
            raise
        except Exception as error:
            if world.speaks(error):
                shown.append(error)
            return None

    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(call, worlds))
    if shown:
        (error,) = shown
        raise error
    return found  # type: ignore[return-value]
