"""How many places a step decides, row by row, where that is fixed beforehand."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

DREAM_END = 1e-3
"""Dream's ``eps``: the time at which its sampler ends."""


def shared_steps(counts: Sequence[int], steps: int | None) -> list[int]:
    """Steps of each block of a row whose blocks have so many open places.

    Blocks share the steps by their places, each takes at least one, and none more than it has
    places; blocks without open places take none. One step a place without ``steps``. Source: LLaDA,
    whose blocks are all equal and divide the steps.
    """
    total, before, found = sum(counts), 0, []
    for count in counts:
        after = before + count
        wanted = count if steps is None else steps * after // total - steps * before // total
        found.append(min(count, max(1, wanted)) if count else 0)
        before = after
    return found


def even_quotas(counts: Tensor, steps: Tensor) -> Tensor:
    """Share ``counts``, ``i64[rows]``, evenly: ``i64[most steps, rows]``.

    The first steps take what is left over. Rows with fewer ``steps``, ``i64[rows]``, than others
    have nothing in the last ones. Source: LLaDA's ``get_num_transfer_tokens``.
    """
    step = torch.arange(int(steps.max()))[:, None]
    divisor = steps.clamp(min=1)
    return ((counts // divisor) + (step < counts % divisor)) * (step < steps)


def dream_times(steps: int) -> list[tuple[float, float]]:
    """Times ``(t, s)`` at the start and the end of each step, from 1 down to ``DREAM_END``."""
    times = torch.linspace(1, DREAM_END, steps + 1, dtype=torch.float64).tolist()
    return list(pairwise(times))


def dream_quotas(counts: Tensor, steps: Tensor) -> Tensor:
    """Of n open places, ``int(n * (1 - s / t))`` a step and all in the last: as ``even_quotas``.

    Source: Dream's ``diffusion_generate``, which takes the mean of n over the batch; here each row
    has its own, so that no row depends on another.
    """
    found = torch.zeros(int(steps.max()), len(counts), dtype=torch.int64)
    for row, (left, of) in enumerate(zip(counts.tolist(), steps.tolist(), strict=True)):
        for step, (t, s) in enumerate(dream_times(of) if of else []):
            quota = left if step == of - 1 else int(left * (1 - s / t))
            found[step, row] = quota
            left -= quota
    return found


def dream_chances(steps: Tensor) -> Tensor:
    """Chance of an open place in each step, ``1 - s / t`` and 1 in the last: ``f64[steps, rows]``.

    Source: Dream's ``origin``.
    """
    found = torch.zeros(int(steps.max()), len(steps), dtype=torch.float64)
    for row, of in enumerate(steps.tolist()):
        for step, (t, s) in enumerate(dream_times(of) if of else []):
            found[step, row] = 1.0 if step == of - 1 else 1 - s / t
    return found
