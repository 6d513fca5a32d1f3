"""How many threads small work is worth.

A block is quantized column by column, and a column is a few hundred thousand additions at most: a
thread that waits at the end of each for one that another program has pushed off its core waits a
hundred times as long as the work takes. On two cores with other work on them, a column of 768 rows
and 128 columns took 23 µs with one thread and 3.4 ms with two.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SMALL = 1 << 18
"""Numbers of a block, below which its columns are quantized on one thread: 2,048 rows of 128."""


@contextmanager
def column_threads(block: Tensor) -> Iterator[None]:
    """Compute on one thread, if steps are over ``block`` at most and it is small; then as before.

    Products over a whole layer belong outside. The number of threads is the process's own, so this
    is for the thread that compiles.
    """
    before = torch.get_num_threads()
    if before == 1 or block.device.type != "cpu" or block.numel() >= SMALL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
