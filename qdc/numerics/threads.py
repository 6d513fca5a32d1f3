"""How many threads small work is worth.

A thread that has to wait for another one, which some other program has pushed off its core, waits a
hundred times as long as small work takes. On two cores with other work on them, an addition to 768
rows and 128 columns took 23 µs with one thread and 3.4 ms with two; there are thousands of them in
a layer that is quantized column by column.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SMALL_BLOCK = 1 << 18
"""Numbers of a block, below which its columns are quantized on one thread: 2,048 rows of 128."""
SMALL_LAYER = 1 << 19
"""Weights of a layer, below which all of its arithmetic is done on one thread: 724 a side."""


@contextmanager
def one_thread(*, where: bool) -> Iterator[None]:
    """Compute on one thread ``where`` it is wanted; then as before.

    The number of threads is the process's own, so this is for the thread that compiles.
    """
    before = torch.get_num_threads()
    if before == 1 or not where:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_small(block: Tensor) -> bool:
    """Whether steps over the columns of a block are better done by one thread."""
    return block.device.type == "cpu" and block.numel() < SMALL_BLOCK
