"""What a process takes beside all that a plan adds up: libraries, and memory freed but kept."""

import functools

import torch
from torch.nn import functional

from qdc.numerics.asymmetry import CrossMomentAccumulator
from qdc.numerics.factor import factorize
from qdc.numerics.moment import MomentAccumulator
from qdc.streaming.ledger import Peak
from qdc.streaming.memory import resident_bytes

SIDE = 256
"""Of the matrices that are computed with: large enough for each library that passes use."""
KEPT = "freed, not given back"
"""The kind of memory that the allocator holds, as the summary names it."""
MOST_KEPT = 3 * (32 << 20)
"""Bytes that glibc keeps: blocks of up to 32 MiB come from its heap once it has seen such a block
freed. Of what is free at the end of the heap it gives back what is above twice that; what is free
between blocks that stay it does not, for which another such block is counted."""


def compile_process_bytes() -> int:
    """Bytes of a process that is about to compile: this one, with all that computing takes.

    Pages of libraries come into memory as they are used, so their parts that passes use are: a
    small model would be planned some 20 MB too low without.
    """
    _compute()
    return resident_bytes()


@functools.cache
def _compute() -> None:
    """Once what calibrating and lowering compute, with small matrices."""
    rows = torch.linspace(-1, 1, SIDE * SIDE).view(SIDE, SIDE).sin()
    with torch.no_grad():
        moment, cross = MomentAccumulator(SIDE), CrossMomentAccumulator(SIDE, rows=SIDE)
        moment.add(rows, rows[0].abs())
        cross.add(rows, rows.T)
        cross.add_residual(rows, rows, rows.T)
        factorize(moment.value())
        heads = rows.view(1, 4, SIDE, SIDE // 4)
        mixed = functional.scaled_dot_product_attention(heads, heads, heads)
        functional.rms_norm(functional.silu(mixed), mixed.shape[-1:]).softmax(-1).argmax(-1)
        rows.sort().values.sign().bfloat16().float().cumsum(-1)


def with_kept(peak: Peak, process: int) -> Peak:
    """The peak of host memory with what the allocator keeps of blocks that were freed.

    Where blocks are small it keeps little: no more than twice what all of them take, each of which
    may leave a hole that the next one does not fit into.

    Args:
        peak: of all that is held.
        process: the bytes of it that no block of the compile is.
    """
    kept = min(MOST_KEPT, 2 * (peak.nbytes - process))
    if kept <= 0:
        return peak
    return Peak(nbytes=peak.nbytes + kept, moment=peak.moment, parts={**peak.parts, KEPT: kept})
