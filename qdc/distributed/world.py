"""The processes of one compile, and what passes between them.

Every rank runs the same program. Where they meet, they first exchange a short message each
(``agree``), which also tells whether somebody has failed; tensors move only after that, so nobody
waits for a rank that has left. Collectives are those of torch.distributed.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from qdc.distributed.failure import FAILED, FINE, FailedElsewhere, LostRank, status_of
from qdc.ir.tensors import torch_dtype
from qdc.ir.types import TensorRef


class World:
    """All ranks, as one of them sees them. Alone, it sends nothing and needs no process group."""

    def __init__(
        self, rank: int = 0, size: int = 1, device: str = "cpu", *, ordered: bool = False
    ) -> None:
        """Describe this process.

        Args:
            rank: of this process, from 0.
            size: number of processes; with more than one the default group is initialized.
            device: where this process computes.
            ordered: add sums up in the order of a single process, so that they are equal bit for
                bit; ranks then take turns.
        """
        self.rank, self.size, self.device, self.ordered = rank, size, device, ordered
        self.sent = 0
        """Bytes that this rank had to deliver to others, whatever way the library took."""
        self.speaker = rank
        """After a failure, the rank that shows it."""
        self.apart = False
        """Whether this rank works by itself, and others do not do the same."""
        self._failed = False
        self._groups: dict[frozenset[int], dist.ProcessGroup] = {}

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and reports."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This rank's part of so many things in a row; the first ranks get what is left over."""
        each, more = divmod(count, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def agree(self, message: bytes = b"") -> list[bytes]:
        """Exchange messages: everybody's, by rank.

        Raises:
            FailedElsewhere: another rank has failed instead of coming here.
            LostRank: another rank has gone.
            RuntimeError: this rank works by itself: others are not to come here.
        """
        if self.apart:
            raise RuntimeError("ranks cannot meet inside of work that they share")
        if self.size == 1:
            return [message]
        found = self.gather(FINE + message)
        for rank, answer in enumerate(found):
            if answer[:1] != FINE:
                raise FailedElsewhere(rank, answer[:1])
        return [answer[1:] for answer in found]

    def speaks(self, error: BaseException) -> bool:
        """Tell all ranks of a failure here. Returns whether this rank is the one to show it.

        It is the first of those that have failed. Asked again, it does not tell again.
        """
        if self.size > 1 and not self._failed:
            self._failed = True
            if isinstance(error, FailedElsewhere):
                self.speaker = error.rank
            elif isinstance(error, LostRank):
                # Everybody notices. The first says so, and the second, as the first may be lost.
                self.speaker = min(self.rank, 1)
            else:
                self.speaker = self._first_failure(error)
        return self.speaker == self.rank

    def _first_failure(self, error: BaseException) -> int:
        try:
            found = self.gather(status_of(error))
        except LostRank:
            return self.rank
        return next(rank for rank, answer in enumerate(found) if answer[:1] in FAILED)

    @contextlib.contextmanager
    def by_itself(self) -> Iterator[None]:
        """Work on things of this rank's own, without meeting the others."""
        if self.apart:
            raise RuntimeError("work that is shared cannot be shared again inside")
        self.apart = True
        try:
            yield
        finally:
            self.apart = False

    def gather(self, message: bytes) -> list[bytes]:
        """All ranks' messages, of any length, by rank."""
        with self._reliable():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(message)]))
            longest = max(int(length) for length in lengths)
            mine = torch.zeros(longest, dtype=torch.uint8)
            mine[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
            parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(parts, mine)
        self.sent += len(message) * (self.size - 1)
        return [
            part[: int(length)].numpy().tobytes()
            for part, length in zip(parts, lengths, strict=True)
        ]

    def broadcast(self, ref: TensorRef, tensor: Tensor | None, source: int, kind: str) -> Tensor:
        """Give one rank's tensor to all, as ``deliver``; every rank calls it."""
        others = [rank for rank in range(self.size) if rank != source]
        return self.deliver(ref, tensor, source, others, kind)

    def deliver(
        self, ref: TensorRef, tensor: Tensor | None, source: int, to: Sequence[int], kind: str
    ) -> Tensor:
        """Give one rank's tensor to some others; every rank calls it.

        Args:
            ref: dtype and shape.
            tensor: at the source.
            source: the rank that has it.
            to: the ranks that get it.
            kind: ``cpu``, or ``cuda`` where it stays on each rank's device.

        Returns:
            The tensor; an empty one where it was not sent to.
        """
        device = torch.device(self.device if kind == "cuda" else "cpu")
        if tensor is None:
            shape = ref.shape if self.rank in to else (0,)
            tensor = torch.empty(shape, dtype=torch_dtype(ref.dtype), device=device)
        plain = tensor.detach().to(device).contiguous()
        if ref.nbytes:
            # Bytes: not every backend knows every dtype.
            data = plain.reshape(-1).view(torch.uint8)
            with self._reliable():
                self._pass_on(data, source, to)
            self.sent += plain.nbytes * len(to) * (self.rank == source)
        return plain

    def _pass_on(self, data: Tensor, source: int, to: Sequence[int]) -> None:
        """One call for all who are in it: two ranks, all ranks, or a group of some."""
        members = frozenset((source, *to))
        if len(members) == self.size:
            dist.broadcast(data, source)
        elif len(members) > 2:
            if members not in self._groups:  # all make it, those outside of it too
                self._groups[members] = dist.new_group(sorted(members))
            if self.rank in members:
                dist.broadcast(data, source, group=self._groups[members])
        elif self.rank == source:
            dist.send(data, to[0])
        elif self.rank in to:
            dist.recv(data, source)

    def reduce(self, tensors: Sequence[Tensor], target: int) -> None:
        """Add everybody's tensors up, in place at the target; elsewhere they are spoilt."""
        with self._reliable():
            for tensor in tensors:
                dist.reduce(tensor, target)
                self.sent += tensor.nbytes * (self.rank != target)

    def hand(self, tensors: Sequence[Tensor], source: int, target: int) -> None:
        """Put one rank's tensors in place of another's."""
        with self._reliable():
            for tensor in tensors:
                if self.rank == source:
                    dist.send(tensor, target)
                    self.sent += tensor.nbytes
                elif self.rank == target:
                    dist.recv(tensor, source)

    @contextlib.contextmanager
    def _reliable(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostRank(
                f"another process of the compile has gone or does not answer: {_short(error)}",
                where=[f"rank {self.rank} of {self.size} has noticed"],
                help="what torchrun says below names the process that ended first",
            ) from error


def _short(error: Exception) -> str:
    """The first line of what a library says, without its addresses."""
    line = next(iter(str(error).splitlines()), "")
    return line.split("] ", 1)[-1][:200].rstrip(".").lower()
