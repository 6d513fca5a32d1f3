"""Probes: runs of the original model in which one layer is replaced, all streamed together.

Every region's weights are read once, for the original and all probes. A probe branches off the
original's stream where its layer stands, so a model of R regions with k layers each costs about
k R^2 / 2 runs of a region. Held by the store of states: the value between two regions for each
probe, that is ``layers x samples x length x width`` floats in the end.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from qdc.ir.graph import Region, Stage
from qdc.passkit.counted import CountedPositions
from qdc.passkit.head import head_logits, output_head
from qdc.streaming.batches import Batches
from qdc.streaming.stream import Stream
from qdc.streaming.unit import Unit

WITHOUT_HEAD = "choose weights of layers that need no predictions: allocate{weights=energy}"
"""What to do where a model has no output head, from which probes read its predictions."""


@dataclass
class Probes:
    """The original model on calibration states, and copies of its run with one layer replaced."""

    unit: Unit
    batches: Sequence[Tensor]
    """``i64[b, length]`` each; ``Batches`` where they have segments."""
    probed: int
    """The first so many batches are run in every probe; all are run in the original."""
    everywhere: bool = False
    """Whether predictions count at every position, not at masked ones alone."""
    probes: dict[str, Stream] = field(default_factory=dict)
    """The stream in which layers are replaced, by the name of the run."""

    def __post_init__(self) -> None:
        """Start the original before the first region. Raises ``UnsupportedModel``."""
        self.head = output_head(self.unit.graph, WITHOUT_HEAD)
        self._read = self.unit.original_weights()
        self._cache: dict[str, Mapping[str, Tensor]] = {}
        self._replaced: dict[str, Tensor] = {}
        self.original = self._stream(self.batches)

    def enter(self, stage: Stage) -> Stream:
        """Move the original to a stage; returns its stream."""
        self.original.enter(stage)
        return self.original

    def weight(self, layer: str) -> Tensor:
        """The original weight of a layer, ``f32[rows, columns]`` on the device."""
        return self._weights(layer)["weight"]

    def replace(self, name: str, weights: Mapping[str, Tensor], region: Region) -> None:
        """Branch off with weights in the place of those of some layers, to the region's end.

        The original stands before the wave of these layers. ``name`` is that of the run. In the
        last region the run goes up to the head.
        """
        probe = self._stream(self.batches[: self.probed])
        probe.join(self.original)
        self._replaced = dict(weights)
        self._leave(probe, region)
        self._replaced = {}
        self.probes[name] = probe

    def advance(self, region: Region) -> None:
        """Run all probes of earlier regions through a region, in which nothing is replaced."""
        for probe in self.probes.values():
            self._leave(probe, region)

    def leave(self, region: Region) -> None:
        """Run the original to the region's end and forget the region's weights."""
        self._leave(self.original, region)
        self._cache.clear()

    def divergence(self, layer: str) -> tuple[float, int]:
        """Mean KL divergence of a probe's predictions from the original's where they count.

        All streams are past the last region.

        Returns:
            Nats, computed in fp64, NaN where predictions are no numbers; the number of positions.
        """
        counted = CountedPositions.of(self.unit.model, everywhere=self.everywhere)
        total, count = 0.0, 0
        batches = Batches.of(self.batches[: self.probed])
        pairs = zip(
            batches,
            batches.segments or [None] * len(batches),
            self.original.compute((self.head.value,)),
            self.probes[layer].compute((self.head.value,)),
            strict=False,
        )
        for tokens, segments, *values in pairs:
            right, wrong = (each[self.head.value] for each in values)
            for row, source in counted.sources(tokens, segments):
                index = (row.to(right.device), source.to(right.device))
                expected, found = (self._predictions(value[index]) for value in (right, wrong))
                total += float((expected.exp() * (expected - found)).sum())
                count += len(row)
        mean = total / max(1, count)
        return mean if math.isnan(mean) else max(0.0, mean), count

    def _predictions(self, hidden: Tensor) -> Tensor:
        weights, cap = self._weights(self.head.layers[0]), self.unit.model.logit_cap
        return head_logits(hidden, weights, cap).log_softmax(-1)

    def _leave(self, stream: Stream, region: Region) -> None:
        if region is self.unit.graph.regions[-1]:
            stream.enter(self.head)
        else:
            stream.leave(region)

    def _stream(self, batches: Sequence[Tensor]) -> Stream:
        return self.unit.loose_stream(batches, self._weights)

    def _weights(self, name: str) -> Mapping[str, Tensor]:
        if name not in self._cache:
            self._cache[name] = self._read(name)
        found = self._cache[name]
        return {**found, "weight": self._replaced[name]} if name in self._replaced else found
