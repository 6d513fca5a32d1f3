"""What the original model predicts at single places of many samples, streamed region by region.

One sweep holds the weights of one region at a time, one value for each position, and at the end the
head. Logits are computed for a few places at a time, whatever the vocabulary is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from qdc.ir.graph import LayerGraph
from qdc.models.predictions import require_finite
from qdc.passkit.head import head_logits, masked_positions, output_head, sources_within
from qdc.streaming.batches import Batches
from qdc.streaming.parameters import NodeWeights
from qdc.streaming.stream import Stream
from qdc.streaming.unit import Unit

Logits = Iterator[tuple[Tensor, Tensor, Tensor]]
"""Rows and places ``i64[n]`` of a batch, and the logits ``f64[n, vocabulary]`` for them."""


class Predicted(NamedTuple):
    """The best token at each position of a batch; 0 where none was asked for."""

    tokens: Tensor
    """``i64[b, length]``; the mask token is never predicted."""
    probability: Tensor
    """``f64[b, length]``: what the model gives to it, the mask token left out."""


@dataclass(frozen=True)
class Predictor:
    """The original model, as far as predictions are read from it."""

    graph: LayerGraph
    start: Callable[[Batches], Stream]
    """Puts samples before the first region of the original model."""
    read: NodeWeights
    """The checkpoint's own tensors of a node."""
    done: Callable[[Stream], None] = lambda stream: None
    """Told of every stream that has gone through the model."""
    windowed: bool = False
    """Whether attention alone knows of positions, and only of distances (``qdc.models.window``)."""
    help: str = "choose another geometry"
    """What to do where the model does not end in a linear."""

    @classmethod
    def of(cls, unit: Unit, help: str = help) -> Self:
        """The original model of a running compile; its work counts as calibration."""
        read = unit.original_weights()
        return cls(
            graph=unit.graph,
            start=lambda batches: unit.loose_stream(batches, read),
            read=read,
            done=unit.count,
            windowed=unit.windowed,
            help=help,
        )

    def logits(self, batches: Batches, wanted: Sequence[Tensor]) -> Iterator[Logits]:
        """Sweep once through the model; yields for each batch what was asked for of it.

        Args:
            batches: token ids ``i64[b, length]``.
            wanted: for each batch, ``bool[b, length]``: places to predict.

        Raises:
            UnsupportedModel: the model does not end in a linear.
            NotFinite: a logit is infinite or not a number.
        """
        if not batches:
            return
        stage = output_head(self.graph, self.help)
        stream = self.start(batches)
        for region in self.graph.regions:
            stream.leave(region)
        stream.enter(stage)
        self.done(stream)
        (head,) = stage.layers
        weights = self.read(head)
        apart = batches.segments or [None] * len(batches)
        computed = stream.compute((stage.value,))
        for here, segments, values in zip(wanted, apart, computed, strict=True):
            yield self._of_batch(values[stage.value], here, segments, weights)

    def best(self, batches: Batches, wanted: Sequence[Tensor]) -> Iterator[Predicted]:
        """Sweep once; yields for each batch the best token and its probability where wanted."""
        mask = self.graph.model.mask_token_id
        for here, parts in zip(wanted, self.logits(batches, wanted), strict=True):
            tokens = torch.zeros(here.shape, dtype=torch.int64)
            sure = torch.zeros(here.shape, dtype=torch.float64)
            for row, place, logits in parts:
                if mask is not None and mask < logits.shape[1]:
                    logits[:, mask] = -torch.inf
                top, found = logits.max(1)
                tokens[row, place] = found.cpu()
                sure[row, place] = (top - logits.logsumexp(1)).exp().cpu()
            yield Predicted(tokens, sure)

    def _of_batch(
        self,
        hidden: Tensor,
        wanted: Tensor,
        segments: Tensor | None,
        weights: Mapping[str, Tensor],
    ) -> Logits:
        shift = self.graph.model.logits_shift
        for row, place in masked_positions(wanted):
            source = sources_within(row, place, shift, segments)
            read = hidden[row.to(hidden.device), source.to(hidden.device)]
            found = head_logits(read, weights, self.graph.model.logit_cap)
            require_finite(found)
            yield row, place, found
