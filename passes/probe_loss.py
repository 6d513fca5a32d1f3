"""Quantize one layer at a time in the original model and measure what its predictions lose.

Layer errors are no measure across layers: a tenth of the output of one layer may cost more than all
of another's. Here each layer is replaced by its fit at one order, alone, and the rest of the model
is run; the divergence of the predictions at masked positions (KL: the rise of the masked
cross-entropy, were the text drawn from the original's own predictions) is divided by the layer's
output error. allocate{weights=loss} and allocate-rates count a layer's errors so. With
``geometry=clean`` the predictions of all positions are compared, as of a model of the next token.

    before   %h0.q = linear %x   w f16[64,512]
    after        @loss  0.0013 nats at 1,631 positions   0.021 for a unit of output error

Every layer costs one run of the regions behind it on ``probes`` samples; qdc.passkit.probes
says what is held meanwhile.
"""

from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qdc.numerics.order_costs import fitter, order_costs
from qdc.passkit import (
    BLOCK,
    HIGHEST_ORDER,
    ExpertOptions,
    Factorization,
    FactorizationFailed,
    Field,
    Forecast,
    InvalidCalibration,
    Kinds,
    LayerGraph,
    LossSensitivity,
    MomentAccumulator,
    Node,
    NotPositiveDefinite,
    Region,
    Stage,
    Unit,
    Work,
    block_slices,
    factor_bytes,
    factorize,
    residual_cost,
)
from qdc.passkit.experts import read
from qdc.passkit.head import output_head
from qdc.passkit.probes import WITHOUT_HEAD, Probes

PROBE_TOKENS = 4096
"""What is held grows with layers times probed tokens: see docs/allocation.md."""


class ProbeLoss(ExpertOptions):
    """Quantize one layer at a time in the original model and measure what its predictions lose."""

    name: ClassVar[str] = "probe-loss"
    provides: ClassVar[Kinds] = (LossSensitivity,)
    barrier: ClassVar[bool] = True
    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "layers"

    probes: int | None = Field(
        default=None,
        ge=1,
        description=f"samples on which each layer is tried; {PROBE_TOKENS:,} tokens if not given",
    )
    order: int = Field(default=2, ge=1, le=HIGHEST_ORDER, description="order of the tried layer")
    block: int = Field(
        default=BLOCK, ge=8, le=1 << 16, multiple_of=8, description="columns of a block"
    )
    damp: float = Field(default=0.01, gt=0, le=10, description="share of the mean diagonal added")
    attempts: int = Field(
        default=9, ge=1, le=20, description="factorizations tried, damp x 10 each"
    )

    def check(self, graph: LayerGraph) -> None:
        """Refuse a model without a head."""
        super().check(graph)
        output_head(graph, WITHOUT_HEAD)

    def run(self, unit: Unit) -> None:
        """Walk through the model once, with ever more probes."""
        unit.share(unit.layers(), partial(self.walk, unit))

    def walk(self, unit: Unit, layers: tuple[Node, ...]) -> None:
        """Try these layers."""
        drawn = self.draw(unit)
        samples, length = drawn.tokens.shape
        asked = self.probes or max(1, PROBE_TOKENS // length)
        count = min(asked, samples)
        order = self.spread(count, samples)
        size = min(self.batch, count)
        batches = drawn.select(order[:count]).batches(size)
        probed = len(batches)
        if count < samples:
            batches += drawn.select(order[count:]).batches(self.batch)
        probes = Probes(unit, batches, probed, everywhere=self.geometry == "clean")
        stopped = {node.name for node in unit.layers()}
        wanted = {node.name for node in layers}
        errors: dict[str, float] = {}
        for region in unit.graph.regions:
            probes.advance(region)
            for stage in unit.graph.waves[region.name].each():
                if stopped.isdisjoint(stage.layers):
                    continue
                # Also without a layer to try: values are rounded where the stream stops.
                probes.enter(stage)
                tried = [layer for layer in stage.layers if layer in wanted]
                if tried:
                    errors |= self.probe(unit, probes, region, stage, tried)
            probes.leave(region)
        for name in errors:
            rise, positions = probes.divergence(name)
            if not positions:
                raise InvalidCalibration(
                    f"none of the {count} samples has a masked position",
                    help=f"raise {self.name}{{probes=...}}",
                )
            note = LossSensitivity(rise=rise, error=errors[name], positions=positions)
            unit.annotate(unit.graph[name], note)
        unit.count(probes.original, *probes.probes.values())

    def forecast(self, unit: Forecast) -> None:
        """One run of the model, and a run of what is behind each layer on the probed samples."""
        stream = self.travel(unit, original=True)
        samples, length = stream.tokens.shape
        count = min(self.probes or max(1, PROBE_TOKENS // length), samples)
        (head,) = output_head(unit.graph, WITHOUT_HEAD).layers
        width = unit.graph[head].columns
        wanted = dict(unit.layers_by_stage())
        for region in unit.graph.regions:
            for stage in unit.graph.waves[region.name].each():
                layers = wanted.get(stage)
                if layers is None:
                    continue
                stream.enter(stage)
                columns = layers[0].columns
                nbytes, work = stream.cost((stage.value,))
                summed = Work(products=2 * stream.tokens_of(stage) * columns**2)
                unit.work(nbytes + 8 * columns**2, work + summed)
                unit.work(8 * columns**2 + factor_bytes(columns), Work(exact=4 * columns**3 / 3))
                behind = linears_from(unit.graph, region, stage)
                for node in layers:
                    nbytes, work = self.try_layer(unit, node, behind, count * length)
                    unit.work(nbytes, work + Work(linears=count * len(behind)))
            stream.leave(region)
            done = sum(len(wanted.get(stage, ())) for stage in region.stages)
            unit.keep_states(f"probes of {region.name}", done * count * length * width)

    def try_layer(
        self, unit: Forecast, node: Node, behind: list[Node], tokens: int
    ) -> tuple[int, Work]:
        """Fit a layer, and run all linears from its stage on."""
        run = sum(each.rows * each.columns for each in behind)
        weights = node.rows * node.columns
        sweeps = 15 * (12 * self.order + 4 * 2**self.order)
        work = Work(
            products=weights * node.columns + 2 * run * tokens,
            exact=weights * node.columns,
            elements=weights * sweeps,
        )
        exact = 8 * (node.columns**2 + 4 * weights)
        return 2 * unit.weight(node) + 4 * node.columns**2 + exact, work

    def probe(
        self, unit: Unit, probes: Probes, region: Region, stage: Stage, layers: list[str]
    ) -> dict[str, float]:
        """Branch off once for each layer of a stage; returns the layers' output errors."""
        stream, nodes = probes.enter(stage), [unit.graph[name] for name in layers]
        source = self.source(unit, stream, stage, nodes)
        accumulator = MomentAccumulator(nodes[0].columns, unit.device)
        for part in read(stream, stage, stream.masked, pooled=source.pooled):
            accumulator.add(part.value)
        factor = self.factor(accumulator.value(), layers)
        dead = factor.dead.nonzero().flatten()
        quantize = fitter(15, 1e-4, 16, feedback=False, rounds=0, code_sweeps=0)
        errors: dict[str, float] = {}
        for node in nodes:
            name = node.name
            weight = probes.weight(name).index_fill(1, dead, 0)
            slices = block_slices(node.columns, self.block)
            orders = (self.order,)
            found = order_costs(weight, factor.upper, slices, orders, self.order, quantize)
            errors[name] = residual_cost(weight, found.dense, factor.upper)
            probes.replace(name, found.dense, region)
        return errors

    def factor(self, moment: Tensor, layers: list[str]) -> Factorization:
        """Invert a moment. Raises ``NotPositiveDefinite`` naming the layers that read it."""
        try:
            return factorize(moment, self.damp, self.attempts)
        except FactorizationFailed as error:
            raise NotPositiveDefinite(
                f"the second moment is not positive definite: {error}",
                where=[f"%{name}" for name in layers],
                help=f"raise {self.name}{{damp=...}} or calibrate on more tokens: --samples",
            ) from error

    @staticmethod
    def spread(count: int, rows: int) -> Tensor:
        """Order of the samples: first those that are probed, evenly spread over the times."""
        first = ((torch.arange(count) * 2 + 1) * rows).div(2 * count, rounding_mode="floor")
        others = torch.ones(rows, dtype=torch.bool)
        others[first] = False
        return torch.cat([first, others.nonzero()[:, 0]])


def linears_from(graph: LayerGraph, region: Region, stage: Stage) -> list[Node]:
    """The linears of the regions from the wave of this stage on."""
    later = graph.regions[graph.regions.index(region) + 1 :]
    waves = graph.waves[region.name].stages
    first = next(place for place, wave in enumerate(waves) if stage in wave)
    stages = [s for wave in waves[first:] for s in wave] + [s for r in later for s in r.stages]
    return [graph[name] for each in stages for name in each.layers]
