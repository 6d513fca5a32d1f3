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
says what is held meanwhile. Experts of a block are tried ``together``: gates of an eighth of them
in one run, and so on; what the run loses is divided by their errors, each times its tokens.
"""

import math
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qdc.ir.routing import ROUTED
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
    InvalidCheckpoint,
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
from qdc.passkit.experts import weighed
from qdc.passkit.head import output_head
from qdc.passkit.probes import WITHOUT_HEAD, Probes
from qdc.passkit.replacements import GROUPS, Bundle, Fit, Replacement, bundles, own_part
from qdc.streaming.streamforecast import StreamForecast

PROBE_TOKENS = 4096
"""What is held grows with layers times probed tokens: see docs/allocation.md."""


class ProbeLoss(ExpertOptions):
    """Quantize one layer at a time in the original model and measure what its predictions lose."""

    name: ClassVar[str] = "probe-loss"
    provides: ClassVar[Kinds] = (LossSensitivity,)
    barrier: ClassVar[bool] = True
    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "layers"
    reads_all: ClassVar[bool] = False

    probes: int | None = Field(
        default=None,
        ge=1,
        description=f"samples on which each layer is tried; {PROBE_TOKENS:,} tokens if not given",
    )
    together: int | None = Field(
        default=None,
        ge=1,
        description="experts of a block that are tried in one run, each counting by the error of "
        f"its tokens; one in {GROUPS} of them if not given",
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
        if self.together is not None and not any(map(is_routed, graph.linears())):
            raise InvalidCalibration(
                "together is given, and the model has no experts", help="leave it out"
            )

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
        probes = Probes(unit, batches, probed, everywhere=self.chosen_geometry == "clean")
        stopped = {node.name for node in unit.layers()}
        wanted = {node.name for node in layers}
        trials: list[Replacement] = []
        for region in unit.graph.regions:
            probes.advance(region)
            for wave in unit.graph.waves[region.name].stages:
                if all(stopped.isdisjoint(stage.layers) for stage in wave):
                    continue
                # Also without a layer to try: values are rounded where the stream stops.
                probes.enter(wave[0])
                for bundle in bundles(unit.graph, wave, stopped, self.together):
                    mine = own_part(bundle, wanted)
                    trials += self.probe(unit, probes, region, mine) if mine else []
            probes.leave(region)
        for trial in trials:
            rise, positions = probes.divergence(trial.name)
            if not positions:
                raise InvalidCalibration(
                    f"none of the {count} samples has a masked position",
                    help=f"raise {self.name}{{probes=...}}",
                )
            if math.isnan(rise):
                raise InvalidCheckpoint(
                    "predictions are no numbers with layers quantized, or already without",
                    where=[f"%{fit.name}" for fit in trial.layers],
                    help=f"leave {self.name} out, and what reads it; does the model overflow fp32?",
                )
            for name, error, share in trial.parts():
                note = LossSensitivity(rise=rise * share, error=error, positions=positions)
                unit.annotate(unit.graph[name], note)
        unit.count(probes.original, *probes.probes.values())

    def forecast(self, unit: Forecast) -> None:
        """One run of the model, and a run of what is behind each trial on the probed samples."""
        stream = self.travel(unit, original=True)
        samples, length = stream.tokens.shape
        count = min(self.probes or max(1, PROBE_TOKENS // length), samples)
        (head,) = output_head(unit.graph, WITHOUT_HEAD).layers
        width, graph = unit.graph[head].columns, unit.graph
        stopped = {node.name for node in unit.layers()}
        for region in graph.regions:
            runs = 0
            for wave in graph.waves[region.name].stages:
                parts = bundles(graph, wave, stopped, self.together)
                if not any(parts):
                    continue
                stream.enter(wave[0])
                behind = linears_from(graph, region, wave[0])
                for stage, names in (pair for bundle in parts for pair in bundle):
                    self.expect_fits(unit, stream, stage, [graph[name] for name in names])
                tried = sum(max((len(n) for _, n in bundle), default=0) for bundle in parts)
                tokens = {
                    node.name: count * length * (stream.share if is_routed(node) else 1)
                    for node in behind
                }
                products = sum(2 * n.rows * n.columns * tokens[n.name] for n in behind)
                linears = sum(tokens.values()) / length
                unit.work(0, Work(products=products, linears=linears).times(tried))
                runs += tried
            stream.leave(region)
            unit.keep_states(f"probes of {region.name}", runs * count * length * width)

    def expect_fits(
        self, unit: Forecast, stream: StreamForecast, stage: Stage, nodes: list[Node]
    ) -> None:
        """The moment of a stage, and a fit of its layers."""
        columns = nodes[0].columns
        nbytes, work = stream.cost((stage.value,))
        summed = Work(products=2 * stream.tokens_of(stage) * columns**2)
        unit.work(nbytes + 8 * columns**2, work + summed)
        unit.work(8 * columns**2 + factor_bytes(columns), Work(exact=4 * columns**3 / 3))
        for node in nodes:
            weights = node.rows * node.columns
            sweeps = 15 * (12 * self.order + 4 * 2**self.order)
            work = Work(
                products=weights * columns, exact=weights * columns, elements=weights * sweeps
            )
            exact = 8 * (columns**2 + 4 * weights)
            unit.work(2 * unit.weight(node) + 4 * columns**2 + exact, work)

    def probe(
        self, unit: Unit, probes: Probes, region: Region, bundle: Bundle
    ) -> list[Replacement]:
        """Branch off once for each layer of a stage; of experts once for all at one place."""
        fits = [self.fits(unit, probes, stage, names) for stage, names in bundle]
        trials = []
        for place in range(max(len(names) for _, names in bundle)):
            tried = [fit[place] for fit in fits if place < len(fit)]
            trial = Replacement(tried[0].name, tuple(tried))
            probes.replace(trial.name, trial.weights(), region)
            trials.append(trial.without_weights())
        return trials

    def fits(self, unit: Unit, probes: Probes, stage: Stage, names: list[str]) -> list[Fit]:
        """Fit layers of a stage on what it reads."""
        stream, nodes = probes.enter(stage), [unit.graph[name] for name in names]
        source = self.source(unit, stream, stage, nodes)
        accumulator = MomentAccumulator(nodes[0].columns, unit.device)
        for part, weights in weighed(stream, stage, pooled=source.pooled):
            accumulator.add(part.value, weights)
        factor = self.factor(accumulator.value(), names)
        tokens = accumulator.tokens if source.routed is None else source.routed
        dead = factor.dead.nonzero().flatten()
        quantize = fitter(15, 1e-4, 16, feedback=False, rounds=0, code_sweeps=0)
        found: list[Fit] = []
        for node in nodes:
            weight = probes.weight(node.name).index_fill(1, dead, 0)
            slices = block_slices(node.columns, self.block)
            fitted = order_costs(weight, factor.upper, slices, (self.order,), self.order, quantize)
            error = residual_cost(weight, fitted.dense, factor.upper)
            found.append(Fit(node.name, fitted.dense, error, tokens))
        return found

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


def is_routed(node: Node) -> bool:
    """Whether a linear is one of an expert."""
    return node.type.shape[:1] == (ROUTED,)


def linears_from(graph: LayerGraph, region: Region, stage: Stage) -> list[Node]:
    """The linears of the regions from the wave of this stage on."""
    later = graph.regions[graph.regions.index(region) + 1 :]
    waves = graph.waves[region.name].stages
    first = next(place for place, wave in enumerate(waves) if stage in wave)
    stages = [s for wave in waves[first:] for s in wave] + [s for r in later for s in r.stages]
    return [graph[name] for each in stages for name in each.layers]
