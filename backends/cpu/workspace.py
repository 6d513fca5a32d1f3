"""Memory that calls share: it grows to what the largest needs, and is kept for each thread.

Threads of Python that run models at once have one each.
"""

import threading
from math import prod

import torch
from torch import Tensor

LINE = 64
"""Bytes of a cache line; memory begins at one."""


class _Held(threading.local):
    def __init__(self) -> None:
        self.parts: dict[str, Tensor] = {}


_held = _Held()


def reserve(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory under a name, without values; whoever reserves the name again gets the same."""
    nbytes = prod(shape) * dtype.itemsize
    part = _part(name, nbytes)
    skipped = -part.data_ptr() % LINE
    return part[skipped : skipped + nbytes].view(dtype).view(shape)


def address(name: str, nbytes: int) -> int:
    """Where the memory under a name begins, for a kernel: good until the name is reserved again."""
    start = _part(name, nbytes).data_ptr()
    return start + -start % LINE


def _part(name: str, nbytes: int) -> Tensor:
    part = _held.parts.get(name)
    if part is None or part.nbytes < nbytes + LINE:
        part = _held.parts[name] = torch.empty(nbytes + LINE, dtype=torch.uint8)
    return part


def held_bytes() -> int:
    """Bytes that this thread holds."""
    return sum(part.nbytes for part in _held.parts.values())
