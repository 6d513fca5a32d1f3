"""States of the model's own sampler: what it sees when it has written part of the text itself.

Source: LLaDA's low-confidence remasking at temperature 0, in one block or block by block. The
original model computes the logits, streamed region by region, once a denoising step for all samples
that are not at their time yet.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from qdc.passkit.geometry import Masked
from qdc.passkit.head import head_logits, masked_positions, output_head, sources_within
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
    ends = ((1 - times.double()) * steps + 1e-6).floor().long()
    for step in range(int(ends.max())):
        wanted = _filled(places, step + 1, steps) - _filled(places, step, steps)
        rows = torch.split(((ends > step) & (wanted > 0)).nonzero()[:, 0], batch)
        states = [(tokens[some], masked[some]) for some in rows]
        parts = None if segments is None else [segments[some] for some in rows]
        for some, (best, sure) in zip(rows, predict(unit, states, parts), strict=True):
            score = (sure - 2.0 * block[some]).masked_fill(~masked[some], -torch.inf)
            order = score.sort(dim=1, descending=True, stable=True).indices.argsort(1)
            taken = (order < wanted[some, None]) & masked[some]
            tokens[some] = torch.where(taken, best, tokens[some])
            masked[some] &= ~taken
    return tokens, masked


def predict(
    unit: Unit, states: list[tuple[Tensor, Tensor]], segments: list[Tensor] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the original model's best token ``i64[b, length]`` and its probability ``f64[...]``.

    Both are 0 where the state, ``(tokens, masked)``, is not masked. The mask token is never
    predicted. Memory: the weights of one region at a time, one value for each position, and at the
    end the head.
    """
    if not states:
        return
    graph = unit.graph
    stage = output_head(graph, "choose another geometry")
    read = unit.original_weights()
    stream = unit.loose_stream(Batches([tokens for tokens, _ in states], segments), read)
    for region in graph.regions:
        stream.leave(region)
    stream.enter(stage)
    unit.count(stream)
    weights = read(stage.layers[0])
    shift = graph.model.logits_shift
    apart = [None] * len(states) if segments is None else segments
    computed = stream.compute((stage.value,))
    for (tokens, masked), parts, values in zip(states, apart, computed, strict=True):
        hidden = values[stage.value]
        best, sure = torch.zeros_like(tokens), torch.zeros(tokens.shape, dtype=torch.float64)
        for row, place in masked_positions(masked):
            source = sources_within(row, place, shift, parts)
            reads = hidden[row.to(hidden.device), source.to(hidden.device)]
            logits = head_logits(reads, weights)
            logits[:, graph.model.mask] = -torch.inf
            top, found = logits.max(1)
            best[row, place] = found.cpu()
            sure[row, place] = (top - logits.logsumexp(1)).exp().cpu()
        yield best, sure


def _filled(places: Tensor, step: int, steps: int) -> Tensor:
    """Places filled after ``step`` steps: shared evenly, what is left over goes to the first."""
    return step * places.div(steps, rounding_mode="floor") + (places % steps).clamp(max=step)
