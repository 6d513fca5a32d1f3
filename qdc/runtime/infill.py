"""Fill gaps in a text, most certain token first."""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.runtime.masked_loss import Progress, require_finite
from qdc.runtime.predictions import Logits, logits_shift, sources

GAP = "<mask>"


def parse_gaps(
    text: str, encode: Callable[[str], list[int]], mask_id: int, per_gap: int = 1
) -> tuple[Tensor, Tensor]:
    """Tokenise text in which ``<mask>`` stands for ``per_gap`` tokens to fill.

    Returns tokens ``i64[1, T]``, ``mask_id`` in the gaps, and the gaps ``bool[1, T]``. The pieces
    between gaps are tokenised one by one, as they stand.
    """
    if per_gap < 1:
        raise QdcError(f"found {per_gap} tokens per gap, need at least 1", help="1 is the default")
    first, *rest = text.split(GAP)
    if not rest:
        raise QdcError(
            "found no gap to fill",
            help=f"write {GAP} where text is missing: for i {GAP} range(10):",
        )
    tokens = list(encode(first))
    masked = [False] * len(tokens)
    for piece in rest:
        following = encode(piece) if piece else []
        tokens += [mask_id] * per_gap + following
        masked += [True] * per_gap + [False] * len(following)
    return torch.tensor([tokens], dtype=torch.int64), torch.tensor([masked])


@torch.no_grad()
def infill(
    logits: Logits,
    tokens: Tensor,
    masked: Tensor,
    mask_id: int,
    steps: int | None = None,
    progress: Progress | None = None,
    block: int | None = None,
) -> Tensor:
    """Fill the places of ``masked``, ``bool[1, T]``, in ``tokens``, ``i64[1, T]``.

    Returns ``i64[1, T]``. Each step predicts all open places greedily and keeps the most confident
    predictions, the earlier place where two are equal; the others stay masked. ``steps`` share the
    places evenly, the first steps take what is left over; ``None`` fills one place a step, and so
    do more steps than places. The mask itself is never predicted. With the ``block`` of a model
    whose positions do not see later blocks, a block is filled before the next one is begun, and
    takes its share of the steps, at least one. Source: LLaDA's low-confidence remasking at
    temperature 0; confidence is a probability in float64.
    """
    if tokens.ndim != 2 or len(tokens) != 1 or masked.shape != tokens.shape:
        raise QdcError(
            f"found tokens of shape {list(tokens.shape)} and gaps of shape {list(masked.shape)}, "
            "need [1, length] for both",
            help="fill one text at a time",
        )
    if steps is not None and steps < 1:
        raise QdcError(f"found {steps} steps, need at least 1", help="leave steps out for the best")
    filled = tokens.masked_fill(masked, mask_id)
    remaining = masked.clone()
    schedule = _schedule(masked[0].nonzero()[:, 0].tolist(), steps, block)
    for step, (first, last, keep) in enumerate(schedule):
        positions = remaining[0, first : last + 1].nonzero()[:, 0] + first
        read = sources(positions, logits_shift(logits))
        found = logits(filled.clone())[0].to(positions.device)[read].double()
        require_finite(found)
        if mask_id < found.shape[1]:
            found[:, mask_id] = -torch.inf
        confidence, predicted = found.softmax(1).max(1)
        best = confidence.sort(descending=True, stable=True).indices[:keep]
        filled[0, positions[best]] = predicted[best]
        remaining[0, positions[best]] = False
        if progress is not None:
            progress(step + 1, len(schedule))
    return filled


def _schedule(
    places: Sequence[int], steps: int | None, block: int | None
) -> list[tuple[int, int, int]]:
    """For each step the first and last place of its block, and how many places it fills."""
    total, before = len(places) if steps is None else steps, 0
    found: list[tuple[int, int, int]] = []
    for _, group in groupby(places, lambda place: 0 if block is None else place // block):
        inside = list(group)
        count, after = len(inside), before + len(inside)
        share = total * after // len(places) - total * before // len(places)
        rounds, before = min(count, max(1, share)), after
        for step in range(rounds):
            keep = count // rounds + (step < count % rounds)
            found.append((inside[0], inside[-1], keep))
    return found
