"""Move signs, scales and norm gains by gradient until each region's output is right again.

Source: learned rounding over a whole region, as in AutoRound (arXiv 2309.05516), on the levels of
whatever codec lowered the layers. The region reads the quantized stream and is compared with the
full-precision region on the full-precision stream, so it also takes back part of the error of the
regions before. Every weight has a latent weight whose nearest level is its code; the gradient
passes straight through the rounding. Adam, linearly falling steps; part of the samples is held out
and decides which state is kept, the start included, so a region never gets worse on them.

    before   %h0.q = linear %x   w f16[64,512]
                 @daq     4 blocks   output error 1.3e-02   outliers 2.2%   15 sweeps
    after        @daq     4 blocks   output error 1.6e-02   outliers 2.2%   15 sweeps
"""

import math
from typing import ClassVar

import torch

from qdc.numerics.adam import Adam
from qdc.passkit import (
    Batches,
    CalibrationOptions,
    Field,
    Forecast,
    Kinds,
    Lowered,
    Node,
    Unit,
    Work,
    error_effort,
)
from qdc.passkit.region_fit import RegionFit

WEIGHTS_HELD = 9
"""Region's weights in fp32 at a time: as they came, latent, gradient, two averages, the kept state,
the written levels and two on the way to them."""


class Polish(CalibrationOptions):
    """Move signs, scales and norm gains by gradient until each region's output is right again."""

    name: ClassVar[str] = "polish"
    requires: ClassVar[Kinds] = (Lowered,)
    provides: ClassVar[Kinds] = (Lowered,)
    whole_regions: ClassVar[bool] = True

    batch: int = Field(default=4, ge=1, description="sequences of one step")
    iterations: int = Field(default=100, ge=1, le=100_000, description="steps of each region")
    code_rate: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="first step of a latent weight, as a share of its size",
    )
    scale_rate: float = Field(
        default=0.003, ge=0, le=1, description="first step of a scale, as a share of its size"
    )
    norm_rate: float = Field(
        default=0.001, ge=0, le=1, description="first step of norm gains and biases"
    )
    held_out: float = Field(
        default=0.125, gt=0, le=0.5, description="share of the samples that decides what is kept"
    )
    check_every: int = Field(default=25, ge=1, description="steps between two looks at them")

    def run(self, unit: Unit) -> None:
        """Polish one region."""
        assert unit.region is not None
        stream = unit.stream(lambda: self.batches(unit))
        reference = unit.reference(stream.samples)
        stream.start(unit.region)
        reference.start(unit.region)
        weights = stream.token_weights
        if weights is None:
            weights = torch.ones_like(stream.tokens, dtype=torch.float32)
        fit = RegionFit(unit, stream, reference, list(torch.split(weights, self.batch)))
        moving = fit.moving(self.code_rate, self.scale_rate, self.norm_rate)
        optimizer = Adam(moving)
        training, held = self.split(len(fit.states))
        order = self.visits(training)
        before = best = fit.start_loss(held)
        kept = fit.snapshot()
        for step in range(1, self.iterations + 1):
            optimizer.forget()
            torch.autograd.backward(fit.batch_loss(order[step - 1]))
            optimizer.step(1 - (step - 1) / self.iterations)
            if step % self.check_every == 0 or step == self.iterations:
                found = fit.loss(held)
                if found < best:
                    best, kept = found, fit.snapshot()
        fit.restore(kept)
        fit.write(unit, held, before, best)

    def forecast(self, unit: Forecast) -> None:
        """Latent weights of a region with their gradients, Adam's two averages and two copies."""
        assert unit.region is not None
        stream, reference = self.travel(unit), self.travel(unit, original=True)
        stream.start(unit.region)
        reference.start(unit.region)
        outputs = stream.results(unit.region)
        unit.work(*reference.cost(outputs))
        nbytes, once = stream.way_back(outputs)
        samples, length = stream.tokens.shape
        numbers = samples * length * sum(width(unit.graph[n]) for n in outputs)
        unit.keep_states("targets", numbers)
        weights = sum(unit.weight(node) for node in unit.layers())
        batches = -(-samples // self.batch)
        held = math.ceil(self.held_out * batches)
        forwards = self.iterations + (2 + -(-self.iterations // self.check_every)) * held
        linears = once.linears * forwards // batches
        # A step runs one batch forwards and, at twice the cost, backwards.
        runs = (2 * self.iterations + forwards) / batches
        moved = Work(elements=30 * self.iterations * weights / 4)
        effort = Work(runs * once.products, 0, runs * once.elements, linears) + moved
        unit.work(WEIGHTS_HELD * weights + nbytes, effort)
        for node in unit.layers():
            unit.work(*error_effort(node))
        unit.drop_states("targets")

    def batches(self, unit: Unit) -> Batches:
        """The samples in random order, ``i64[batch, length]``: neighbours have like masks."""
        drawn = self.draw(unit)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(drawn.tokens), generator=generator)
        return drawn.select(order).batches(self.batch)

    def split(self, batches: int) -> tuple[list[int], list[int]]:
        """Which batches are trained on and which are held out; a single one is both."""
        held = max(1, math.ceil(self.held_out * batches))
        training = list(range(batches - held)) or list(range(batches))
        return training, list(range(batches))[-held:]

    def visits(self, training: list[int]) -> list[int]:
        """The batch of each step: shuffled anew in every round."""
        generator = torch.Generator().manual_seed(self.seed)
        found: list[int] = []
        while len(found) < self.iterations:
            found += [training[i] for i in torch.randperm(len(training), generator=generator)]
        return found


def width(node: Node) -> int:
    """Numbers of a value for each token."""
    return math.prod(size for size in node.type.shape if isinstance(size, int))
