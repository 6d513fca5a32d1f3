"""Move a bit from the least to the most salient column groups, as many as outputs ask for.

Source: SliM-LLM (arXiv 2405.14917), Salience-Determined Bit Allocation (SBA). For a count i the i
least salient groups of a layer get one bit less and the i most salient one more, so the mean stays
the base. Every count is tried on calibration states: the groups are written out by rounding to
nearest, and the divergence of the softmax over a token's outputs from that of the original weight,
KL(quantized, original), is averaged over the tokens. The least one wins.

    before   %h0.q = linear %x   w f16[64,512]
                 @salience  4 blocks of 128   1.0e+00 .. 9.0e+00
    after        @orders    2 1 3 2   mean 2

Two counts differ in two groups, so their outputs differ by two products of a group's width: all
counts together cost two products of the whole layer. States stream through, and none are held.

The orders are those of ``daq-lower`` as well: ``write-out=binary`` fits binary components in place
of rounding. Ours: i = 0, no group moves, which the release never tries (``counts=release``); equal
orders for the linears of a stage on demand. Quirks of the release: it scores with
``damp-in-place``, added to the diagonal of 2 x x^T and left there, so that later factors see it,
and ranks again by the final factor (``rank=final``). A narrower last group keeps the base.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from qdc.numerics.group_moves import group_counts, moved_orders
from qdc.numerics.importance import block_scores
from qdc.numerics.output_divergence import DivergenceAccumulator, write_out
from qdc.passkit import (
    HIGHEST_ORDER,
    LOWEST_ORDER,
    ExpertOptions,
    Factor,
    Factorization,
    FactorizationFailed,
    Field,
    Forecast,
    InvalidCheckpoint,
    Kinds,
    LayerGraph,
    Moment,
    Node,
    NotPositiveDefinite,
    OrderOutOfRange,
    Orders,
    Preset,
    Salience,
    Source,
    Stage,
    Stream,
    Unit,
    Work,
    block_slices,
    factor_bytes,
    factorize,
    model_validator,
    table_key,
)
from qdc.passkit.experts import weighed
from qdc.passkit.lowering import RANGE

ATTEMPTS = 9


class Scores(NamedTuple):
    """What the groups of the layers of a stage are ranked by."""

    scored: Mapping[str, Sequence[float]]
    """Salience of each group by layer, as the counts are tried."""
    final: Mapping[str, Sequence[float]]
    """The same as the orders are given."""
    factor: Factorization | None
    """What later passes are to read in place of the stage's factor; None where that one stays."""


class SlimAllocate(ExpertOptions):
    """Move a bit from the least to the most salient column groups, as many as outputs ask for."""

    name: ClassVar[str] = "slim-allocate"
    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "samples"
    reads_all: ClassVar[bool] = False
    requires: ClassVar[Kinds] = (Salience,)
    provides: ClassVar[Kinds] = (Orders,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "slim-daq": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},"
            "slim-allocate{scope=stage write-out=binary},daq-lower{asymmetry=1}),pack"
        ),
    }

    base: int = Field(default=2, description="mean order of every layer")
    scope: Literal["layer", "stage"] = Field(
        default="layer", description="a count for each layer, or equal orders for a stage"
    )
    counts: Literal["all", "release"] = Field(
        default="all", description="groups moved each way: 0 to half, or 1 to one below half"
    )
    write_out: Literal["rounding", "binary"] = Field(
        default="rounding", description="how groups are written out to try a count"
    )
    damp_in_place: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="added to 2 x x^T before scores and left there (release: 0.01)",
    )
    rank: Literal["scored", "final"] = Field(
        default="scored", description="groups that move: as tried, or as the final factor ranks"
    )

    @model_validator(mode="after")
    def _rank_is_read(self) -> "SlimAllocate":
        if self.rank == "final" and not self.damp_in_place:
            raise ValueError("rank=final is for damp-in-place: without it both ranks are the same")
        return self

    def needs(self) -> Kinds:
        """To damp it in place the moment is read, and factorized as it was before."""
        return (*self.requires, Moment, Factor) if self.damp_in_place else self.requires

    def check(self, graph: LayerGraph) -> None:
        """Refuse a base whose neighbours no codec can hold."""
        super().check(graph)
        if not LOWEST_ORDER <= self.base - 1 <= self.base + 1 <= HIGHEST_ORDER:
            raise OrderOutOfRange(
                f"base {self.base} needs orders {self.base - 1}..{self.base + 1}, "
                f"outside {LOWEST_ORDER}..{HIGHEST_ORDER}",
                where=[f"%{node.name}" for node in graph.layers()],
                help=f"choose base in {LOWEST_ORDER + 1}..{HIGHEST_ORDER - 1}",
            )

    def run(self, unit: Unit) -> None:
        """Advance the stream to each stage and try every count on what it reads."""
        stream = unit.stream(lambda: self.draw(unit).batches(self.batch), split=True)
        for stage, layers in unit.layers_by_stage():
            stream.enter(stage)
            source = self.source(unit, stream, stage, layers)
            scores = self.scores(unit, layers)
            tried: dict[str, DivergenceAccumulator] = {}
            for group in self.groups(layers):
                ranking = self.ranking(unit, group, scores.scored)
                tried |= {node.name: self.trial(unit, node, ranking) for node in group}
            add = partial(self.add, stream, stage, source, list(tried.values()))
            unit.accumulate(layers, add, *tried.values())
            unit.share(layers, partial(self.note, unit, stage, layers, scores, tried))
        if unit.whole_region and unit.region is not None:
            stream.leave(unit.region)

    def groups(self, layers: tuple[Node, ...]) -> list[tuple[Node, ...]]:
        """Layers that share a count."""
        return [layers] if self.scope == "stage" else [(node,) for node in layers]

    def scores(self, unit: Unit, layers: tuple[Node, ...]) -> Scores:
        """Salience of the groups, with the moment damped in place if that is asked for."""
        notes = {node.name: unit.graph.require(node.name, Salience) for node in layers}
        plain = {name: note.blocks for name, note in notes.items()}
        if not self.damp_in_place:
            return Scores(plain, plain, None)
        moment = unit.get(unit.graph.require(layers[0].name, Moment).tensor).clone()
        # The release's moment is twice the mean of x x^T.
        moment.diagonal().add_(self.damp_in_place / 2)
        damp = unit.graph.require(layers[0].name, Factor).damp
        scoring, final = (self.factor(moment, share, layers) for share in (0.0, damp))
        slices = block_slices(layers[0].columns, notes[layers[0].name].widths[0])
        found = [
            {n.name: block_scores(unit.weight(n), factor.upper, slices) for n in layers}
            for factor in (scoring, final)
        ]
        return Scores(found[0], found[self.rank == "final"], final)

    def factor(self, moment: Tensor, damp: float, layers: tuple[Node, ...]) -> Factorization:
        """Factorize a moment. Raises ``NotPositiveDefinite`` naming the layers that read it."""
        try:
            return factorize(moment, damp, ATTEMPTS if damp else 1)
        except FactorizationFailed as error:
            raise NotPositiveDefinite(
                f"the second moment is not positive definite: {error}",
                where=[f"%{node.name}" for node in layers],
                help=f"raise {self.name}{{damp-in-place=...}}, or set it to 0",
            ) from error

    def ranking(
        self, unit: Unit, group: tuple[Node, ...], scores: Mapping[str, Sequence[float]]
    ) -> tuple[int, ...]:
        """Full groups of columns from the least to the most salient, added up over the layers."""
        widths = unit.graph.require(group[0].name, Salience).widths
        total = [sum(column) for column in zip(*(scores[n.name] for n in group), strict=True)]
        full = [place for place, width in enumerate(widths) if width == widths[0]]
        return tuple(sorted(full, key=lambda place: total[place]))

    def trial(self, unit: Unit, node: Node, ranking: tuple[int, ...]) -> DivergenceAccumulator:
        """Write the layer out at the base and its neighbours, ready for the states."""
        weight = unit.weight(node)
        slices = block_slices(node.columns, unit.graph.require(node.name, Salience).widths[0])
        counts = self.counted(len(ranking))
        try:
            written = write_out(weight, slices, self.base, binary=self.write_out == "binary")
        except OverflowError as error:
            raise InvalidCheckpoint(
                f"weights do not fit fp16 scales: {error}", where=[f"%{node.name}"], help=RANGE
            ) from error
        return DivergenceAccumulator(weight, written, slices, ranking, counts)

    def counted(self, full: int) -> range:
        """The counts that are tried for so many groups of full width."""
        return group_counts(full, release=self.counts == "release")

    def add(
        self, stream: Stream, stage: Stage, source: Source, tried: list[DivergenceAccumulator]
    ) -> None:
        """Add up the divergence of every count over what the stage reads."""
        for part, shares in weighed(stream, stage, pooled=source.pooled):
            for each in tried:
                each.add(part.value, shares)

    def note(
        self,
        unit: Unit,
        stage: Stage,
        together: tuple[Node, ...],
        scores: Scores,
        tried: Mapping[str, DivergenceAccumulator],
        layers: tuple[Node, ...],
    ) -> None:
        """Give layers of a stage the count of least divergence, and say what it gains."""
        factor: Factor | None = None
        if scores.factor is not None:
            factor = Factor(
                tensor=unit.put(table_key(stage.value, "factor:slim"), scores.factor.upper),
                damp=scores.factor.damp,
                attempts=scores.factor.attempts,
                dead=tuple(scores.factor.dead.nonzero().flatten().tolist()),
            )
        for group in self.groups(together):
            widths = unit.graph.require(group[0].name, Salience).widths
            ranking = self.ranking(unit, group, scores.final)
            mean = torch.stack([tried[node.name].value() for node in group]).sum(0)
            counts = self.counted(len(ranking))
            place = int(mean.argmin())
            orders = moved_orders(ranking, counts[place], len(widths), self.base)
            for node in group:
                if node not in layers:
                    continue
                unit.annotate(node, Orders(blocks=orders, widths=widths, budget=self.base))
                if factor is not None:
                    unit.annotate(node, factor)
                if not counts[-1]:
                    unit.remark("missed", node, reason="too few blocks", blocks=len(orders))
                    continue
                moved, first = counts[place], float(mean[0])
                unit.remark(
                    "passed" if moved else "note",
                    node,
                    raised=moved,
                    lowered=moved,
                    divergence=float(mean[place]),
                    of=f"{counts[0]}..{counts[-1]}",
                    first=first,
                )

    def forecast(self, unit: Forecast) -> None:
        """Which groups move is not known; as many go down as up, so what is stored is."""
        stream = self.travel(unit)
        for stage, layers in unit.layers_by_stage():
            stream.enter(stage)
            rows = max(node.rows for node in layers)
            nbytes, work = stream.cost((stage.value,))
            nbytes += DivergenceAccumulator.scratch(stream.sizes["B"] * stream.sizes["L"], rows)
            self.expect(unit, stage, layers, (nbytes, work), stream.tokens_of(stage))
        if unit.whole_region and unit.region is not None:
            stream.leave(unit.region)

    def expect(
        self,
        unit: Forecast,
        stage: Stage,
        layers: tuple[Node, ...],
        cost: tuple[int, Work],
        tokens: float,
    ) -> None:
        """Charge the trials of a stage: three forms of each weight, the states of a batch."""
        columns, (nbytes, work) = layers[0].columns, cost
        if self.damp_in_place:
            exact = Work(exact=8 * columns**3 / 3)
            unit.work(8 * columns**2 + factor_bytes(columns), exact)
            factor = unit.put(stage, "factor:slim", columns, columns)
            for node in layers:
                found = unit.graph.get(node.name, Factor)
                damp = 0.0 if found is None else found.damp
                unit.annotate(node, Factor(tensor=factor, damp=damp, attempts=1))
        held = 0
        for node in layers:
            salience = unit.graph.get(node.name, Salience)
            if salience is None:
                unit.unknown()
                continue
            widths = salience.widths
            counts = len(self.counted(sum(width == widths[0] for width in widths)))
            held += 4 * unit.weight(node)
            work += Work(
                products=6 * tokens * node.rows * node.columns,
                elements=8 * counts * tokens * node.rows,
            )
            orders = (self.base,) * len(widths)
            unit.annotate(node, Orders(blocks=orders, widths=widths, budget=self.base))
        unit.work(nbytes + held, work)
