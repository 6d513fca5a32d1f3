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
    part = _held.parts.get(name)
    if part is None or part.nbytes < nbytes + LINE:
        part = _held.parts[name] = torch.empty(nbytes + LINE, dtype=torch.uint8)
    skipped = -part.data_ptr() % LINE
    return part[skipped : skipped + nbytes].view(dtype).view(shape)


def held_bytes() -> int:
    """Bytes that this thread holds."""
    return sum(part.nbytes for part in _held.parts.values())
