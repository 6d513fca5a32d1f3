"""How far two models agree: on the distribution of a masked token, and on what they decode."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.evaluation.bootstrap import interval
from qdc.evaluation.infill import infill
from qdc.evaluation.results import DecodeAgreement
from qdc.models.predictions import Logits
from qdc.numerics.random_numbers import uniforms
from qdc.units import Progress

GAP = 8


def decode_agreement(
    candidate: Logits,
    original: Logits,
    windows: Tensor,
    mask_id: int,
    infills: int,
    owners: Tensor | None = None,
    block: int | None = None,
    progress: Progress | None = None,
    batch: int = 1,
) -> DecodeAgreement:
    """Fill one gap in each of ``infills`` windows greedily with both models, and compare.

    The windows ``i64[w, length]`` are an even choice; a gap of 8 tokens (a quarter of a window
    shorter than 32) begins anywhere but at its start, where no token stands in front. One place is
    filled a step, ``block`` as for ``infill``. ``owners``, ``i64[w]``, are the documents that the
    interval resamples. ``batch`` windows are filled at a time, of those with gaps in the same
    blocks. Raises QdcError for windows of fewer than two tokens.
    """
    count, length = windows.shape
    if length < 2 or infills < 1:
        raise QdcError(
            f"found {infills} gaps to fill in windows of {length} tokens, need 1 or more in 2",
            help="choose longer windows, or leave decoding out",
        )
    gap = max(1, min(GAP, length // 4))
    places = [number * count // infills for number in range(min(infills, count))]
    if infills > count:
        places = list(range(count))
    equal, right = torch.zeros(len(places)), torch.zeros(2, len(places))
    starts = [_start(place, length, gap) for place in places]
    done = 0
    for some in _together(starts, gap, block, batch):
        clean = windows[[places[number] for number in some]]
        column = torch.arange(length) - torch.tensor([starts[number] for number in some])[:, None]
        hidden = (column >= 0) & (column < gap)
        filled = [
            infill(model, clean.clone(), hidden, mask_id, block=block)[hidden].view(-1, gap)
            for model in (candidate, original)
        ]
        equal[some] = (filled[0] == filled[1]).sum(1).float()
        for model in range(2):
            right[model, some] = (filled[model] == clean[hidden].view(-1, gap)).sum(1).float()
        done += len(some)
        if progress is not None:
            progress(done, len(places))
    sizes = torch.full((len(places),), float(gap))
    groups = None if owners is None else owners[places]
    return DecodeAgreement(
        gaps=len(places),
        gap=gap,
        tokens_equal=float(equal.sum() / sizes.sum()),
        interval=interval(equal, sizes, groups),
        gaps_equal=int((equal == gap).sum()),
        candidate_right=float(right[0].sum() / sizes.sum()),
        original_right=float(right[1].sum() / sizes.sum()),
    )


def _start(window: int, length: int, gap: int) -> int:
    """Where the gap of a window begins: anywhere but at its first token."""
    start = 1 + int(float(uniforms(1, "infill", window)) * (length - gap))
    return min(start, length - gap)


def _together(
    starts: Sequence[int], gap: int, block: int | None, batch: int
) -> Iterator[list[int]]:
    """Numbers of gaps that are filled at once: up to ``batch``, in the same blocks."""
    alike: dict[tuple[int, int], list[int]] = {}
    for number, start in enumerate(starts):
        blocks = (start // block, (start + gap - 1) // block) if block else (0, 0)
        alike.setdefault(blocks, []).append(number)
    for numbers in alike.values():
        for first in range(0, len(numbers), batch):
            yield numbers[first : first + batch]
