"""States of the model's own sampler: what it sees when it has written part of the text itself.

Source: LLaDA's low-confidence remasking at temperature 0, in one block or block by block. The
original model computes the logits, streamed region by region, once a denoising step for all samples
that are not at their time yet.
"""

import torch
from torch import Tensor

from qdc.passkit.geometry import Masked
from qdc.passkit.predictor import Predictor
from qdc.streaming.batches import Batches
from qdc.streaming.unit import Unit


def rollout(
    unit: Unit,
    clean: Tensor,
    maskable: Tensor,
    times: Tensor,
    steps: int,
    block_length: int | None,
    batch: int,
    segments: Tensor | None = None,
) -> Masked:
    """Let the original model fill ``maskable`` places, each sample until its time.

    Args:
        unit: of the pass that draws the samples.
        clean: ``i64[N, length]``; behind the prompt only its length counts.
        maskable: ``bool[N, length]``: what the sampler writes.
        times: ``f32[N]``: a sample stops after the last step that leaves at least this share.
        steps: denoising steps that would fill a whole sample, of equally many tokens each.
        block_length: maskable places of a block; blocks are filled from left to right.
        batch: samples computed at once.
        segments: ``i64[N, length]``: which positions see each other; None if all of a row do.

    Returns:
        Tokens with the model's own in the places that are filled, and the mask.

    Raises:
        UnsupportedModel: the model does not end in a linear.
    """
    mask_id = unit.model.mask
    tokens, masked = clean.masked_fill(maskable, mask_id), maskable.clone()
    places = maskable.sum(1)
    rank = maskable.long().cumsum(1) - 1
    block = rank.div(block_length or clean.shape[1], rounding_mode="floor")
    predictor = Predictor.of(unit)
    ends = steps_to(times, steps)
    for step in range(int(ends.max())):
        wanted = _filled(places, step + 1, steps) - _filled(places, step, steps)
        rows = torch.split(((ends > step) & (wanted > 0)).nonzero()[:, 0], batch)
        parts = None if segments is None else [segments[some] for some in rows]
        batches = Batches([tokens[some] for some in rows], parts)
        found = predictor.best(batches, [masked[some] for some in rows])
        for some, (best, sure) in zip(rows, found, strict=True):
            score = (sure - 2.0 * block[some]).masked_fill(~masked[some], -torch.inf)
            order = score.sort(dim=1, descending=True, stable=True).indices.argsort(1)
            taken = (order < wanted[some, None]) & masked[some]
            tokens[some] = torch.where(taken, best, tokens[some])
            masked[some] &= ~taken
    return tokens, masked


def steps_to(times: Tensor, steps: int) -> Tensor:
    """Steps that lead to these times, ``i64[N]``: the last that leave at least this share."""
    return ((1 - times.double()) * steps + 1e-6).floor().long()


def _filled(places: Tensor, step: int, steps: int) -> Tensor:
    """Places filled after ``step`` steps: shared evenly, what is left over goes to the first."""
    return step * places.div(steps, rounding_mode="floor") + (places % steps).clamp(max=step)
