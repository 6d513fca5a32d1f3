"""How far two models agree: on the distribution of a masked token, and on what they decode."""

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
) -> DecodeAgreement:
    """Fill one gap in each of ``infills`` windows greedily with both models, and compare.

    The windows ``i64[w, length]`` are an even choice; a gap of 8 tokens (a quarter of a window
    shorter than 32) begins anywhere but at its start, where no token stands in front. One place is
    filled a step, ``block`` as for ``infill``. ``owners``, ``i64[w]``, are the documents that the
    interval resamples. Raises QdcError for windows of fewer than two tokens.
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
    for number, place in enumerate(places):
        clean = windows[place : place + 1]
        start = 1 + int(float(uniforms(1, "infill", place)) * (length - gap))
        start = min(start, length - gap)
        hidden = torch.zeros_like(clean, dtype=torch.bool)
        hidden[:, start : start + gap] = True
        filled = [
            infill(model, clean.clone(), hidden, mask_id, block=block)[hidden].cpu()
            for model in (candidate, original)
        ]
        equal[number] = (filled[0] == filled[1]).sum()
        for model in range(2):
            right[model, number] = (filled[model] == clean[hidden]).sum()
        if progress is not None:
            progress(number + 1, len(places))
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
