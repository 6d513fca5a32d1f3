"""Write vectors of weights as sums of codebook entries, fitted to the outputs of the whole layer.

Source: AQLM (arXiv 2401.06118): row norms as scales, residual k-means, then in turn steps of Adam
on codebooks and scales and a beam search over the codes by exact changes of the output error; its
tuning of blocks is ``polish`` behind it, which moves codebooks, scales and norms. Ours:
``update=solve``, conjugate gradients in place of Adam; ``feedback``, which also offers codes chosen
left to right, later columns compensating; ``start=conditional`` and ``outputs``, k-means by the
error of outputs (arXiv 2604.08118); ``asymmetry``, which takes back the drift of a layer's inputs
(GPTAQ's objective, arXiv 2504.02692).

Codebooks are stored for each layer, so small layers pay for them: two of 8 bits take 0.004 bits a
weight of a 4096 x 4096 layer, and a whole bit of a 256 x 256 one, where ``codebooks=1 group=4``
takes a quarter.

    before   %h0.q = linear %x   w f16[256,256]
                 @moment  f32[256,256]   128 samples, 32,768 tokens, 38% masked
    after        @aqlm    2 codebooks of 256 x 8   2 bits + 1 of codebooks   output error 1.2e-02
                 6 epochs
"""

from collections.abc import Mapping
from typing import ClassVar

import torch

from qdc.format.additive import AdditiveCodebooks, CodeBits
from qdc.numerics.additive import Additive, Problem
from qdc.numerics.additive_fit import fit_additive
from qdc.numerics.additive_search import COSTS, feedback_codes
from qdc.numerics.additive_start import Start, distance_metric, start_additive
from qdc.numerics.additive_update import Update
from qdc.passkit import (
    CrossMoment,
    Factor,
    Field,
    Forecast,
    InvalidPipeline,
    Kinds,
    LayerGraph,
    Lowered,
    Lowering,
    Moment,
    Node,
    Preset,
    Tensor,
    Tensors,
    Unit,
    Work,
    model_validator,
    target,
)

USUAL_EPOCHS = 6
"""About how many epochs a layer takes before the tolerance ends them, for ``qdc plan``."""


class Aqlm(Lowered):
    """A layer as codes, codebooks and row scales."""

    tag: ClassVar[str] = "aqlm"
    codec: AdditiveCodebooks
    epochs: int = Field(ge=0)
    """Updates of the codebooks, each with a search behind it."""

    def text(self) -> str:
        """The format, the output error, and ``5 epochs``."""
        return f"{super().text()}   {self.epochs} epochs"


class AqlmLower(Lowering):
    """Write vectors of weights as sums of codebook entries, fitted to the outputs of the layer."""

    name: ClassVar[str] = "aqlm-lower"
    requires: ClassVar[Kinds] = (Moment,)
    provides: ClassVar[Kinds] = (Aqlm,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "aqlm": Preset("stages(calibrate-mcs,aqlm-lower),polish,pack", 2, "arXiv 2401.06118"),
        "aqlm-shared": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},aqlm-lower{"
            "start=conditional cluster-steps=25 update=solve feedback=true damped=true "
            "asymmetry=1}),pack",
            2,
            "arXiv 2401.06118",
        ),
        "aqlm-narrow": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},aqlm-lower{codebooks=1 group=4 "
            "start=conditional cluster-steps=25 update=solve feedback=true damped=true "
            "asymmetry=1}),pack",
            2,
            "arXiv 2401.06118",
        ),
    }

    codebooks: int = Field(default=2, ge=1, le=16, description="entries that a vector is a sum of")
    bits: CodeBits = Field(default=8, description="bits of a code; a codebook has 2^bits entries")
    group: int = Field(default=8, ge=1, le=64, description="columns of a vector")
    start: Start = Field(
        default="weights", description="k-means by weights, or by what outputs lose"
    )
    cluster_steps: int = Field(
        default=100, ge=1, le=10_000, description="most rounds of k-means for a codebook"
    )
    points: int = Field(
        default=1024, ge=1, le=1 << 20, description="most vectors for each entry that k-means sees"
    )
    update: Update = Field(
        default="adam", description="codebooks by steps of Adam, or by one solve (ours)"
    )
    steps: int = Field(
        default=100, ge=1, le=100_000, description="steps of Adam, or most of a solve, in an epoch"
    )
    rate: float = Field(default=1e-4, gt=0, le=1, description="step size of Adam")
    epochs: int = Field(default=1000, ge=0, le=100_000, description="most updates and searches")
    tolerance: float = Field(
        default=0.01, ge=0, lt=1, description="stop when an epoch gains less than this share"
    )
    beam: int = Field(default=1, ge=1, le=64, description="states of a row that a search keeps")
    feedback: bool = Field(
        default=False, description="offer codes chosen left to right, later columns compensating"
    )
    damped: bool = Field(
        default=False, description="fit in the moment as sensitivity damps it, not as it is"
    )
    asymmetry: float = Field(
        default=0, ge=0, le=2, description="share of its inputs' drift that a layer takes back"
    )
    seed: int = Field(default=0, ge=0, lt=1 << 32, description="of first centres and orders")

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "AqlmLower":
        fields = type(self).model_fields
        unread = {
            "update=solve": ("rate",) if self.update == "solve" else (),
            "epochs=0": ("update", "steps", "rate", "tolerance") if not self.epochs else (),
            "epochs=0 feedback=false": ("beam",) if not (self.epochs or self.feedback) else (),
        }
        for why, options in unread.items():
            for option in options:
                if getattr(self, option) != fields[option].default:
                    raise ValueError(f"{why} does not read {option}")
        if self.beam > 1 << self.bits:
            raise ValueError(f"beam {self.beam} is more than {1 << self.bits} entries can fill")
        return self

    def needs(self) -> Kinds:
        """A factor for all that is compensated or damped, a cross moment for the drift."""
        wanted = self.damped or self.feedback or self.start == "conditional" or self.asymmetry
        found: Kinds = (*self.requires, Factor) if wanted else self.requires
        return (*found, CrossMoment) if self.asymmetry else found

    def check(self, graph: LayerGraph) -> None:
        """Refuse codebooks of 65,536 entries that are larger than the layer in fp16."""
        codebooks = self.codebooks << self.bits
        small = [n for n in graph.layers() if n.rows * -(-n.columns // self.group) < codebooks]
        if self.bits == 16 and small:
            raise InvalidPipeline(
                f"{codebooks:,} codebook entries are more than these layers have vectors of "
                f"{self.group}: they would take more than the layer in fp16",
                where=[f"%{node.name}" for node in small],
                help="use bits=8 for small layers",
            )

    def forecast_codec(self, unit: Forecast | Unit, node: Node) -> AdditiveCodebooks:
        """The format of a layer, known from its shape."""
        return AdditiveCodebooks.sized(
            node.rows, node.columns, self.group, self.codebooks, self.bits
        )

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """Copies of weight and moment in fp32 and fp64; k-means, updates and searches.

        Epochs are as many as layers usually take.
        """
        weights, squares = node.rows * node.columns, node.columns**2
        codec = self.forecast_codec(unit, node)
        vectors, entries = node.rows * codec.groups, codec.entries
        searched = self.codebooks * vectors * entries
        epochs = min(self.epochs, USUAL_EPOCHS)
        seen = min(vectors, self.points * entries)
        clusters = self.codebooks * entries * (self.cluster_steps * seen + vectors)
        updates = epochs * self.steps * (2 * weights * node.columns)
        searches = (epochs + self.feedback) * (1 + self.feedback)
        each = searched * 2 * self.group + 2 * self.codebooks * weights * node.columns
        work = Work(
            products=clusters * 2 * self.group + updates + searches * self.beam * each,
            exact=8 * epochs * weights * node.columns,
            elements=2 * clusters
            + epochs * self.steps * (4 + 4 * self.codebooks) * weights
            + searches * self.beam * searched * 3,
        )
        states = 4 * self.beam * weights
        costs = 2 * 4 * min(COSTS, searched * self.beam)
        matrices = (3 * 4 + 2 * 8 + self.factored * (4 + 8)) * squares
        nbytes = (10 * 4 + 3 * 8) * weights + matrices + states + costs
        return nbytes + 3 * 8 * self.codebooks * vectors, work

    def lower(self, unit: Unit, node: Node) -> tuple[Aqlm, Tensors]:
        """Fit one layer."""
        codec = self.forecast_codec(unit, node)
        upper = unit.get(unit.graph.require(node.name, Factor).tensor) if self.factored else None
        wanted, moment = self.problem(unit, node, upper)
        problem = Problem.padded(wanted, moment, self.group)
        start = start_additive(
            problem,
            self.codebooks,
            codec.entries,
            self.group,
            metric=distance_metric(self.start, problem.moment, upper, self.group),
            iterations=self.cluster_steps,
            points=self.points,
            seed=self.seed,
        )

        def fed_back(state: Additive) -> Tensor:
            assert upper is not None
            return feedback_codes(wanted, upper, state)

        state, costs = fit_additive(
            problem,
            start,
            update=self.update,
            steps=self.steps,
            rate=self.rate,
            epochs=self.epochs,
            tolerance=self.tolerance,
            beam=min(self.beam, codec.entries),
            seed=self.seed,
            feedback=fed_back if self.feedback else None,
        )
        note = Aqlm(codec=codec, epochs=len(costs) - 1)
        return note, AdditiveCodebooks.working(state, self.bits)

    @property
    def factored(self) -> bool:
        """Whether the factor is read."""
        return Factor in self.needs()

    def problem(self, unit: Unit, node: Node, upper: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is to be met, ``f32[rows, columns]``, and the moment that measures errors.

        Inputs that are always 0 get the mean of the others on the diagonal and weights of 0, so
        that their codes are not left to chance.
        """
        moment = unit.get(unit.graph.require(node.name, Moment).tensor)
        diagonal = moment.diagonal().to(torch.float64)
        dead = diagonal == 0
        mean = float(diagonal[~dead].mean()) if not bool(dead.all()) else 1.0
        filled = diagonal.masked_fill(dead, mean)
        if upper is None:
            wanted = unit.weight(node).masked_fill(dead, 0)
        else:
            wanted = target(unit, node, upper, self.asymmetry)
            if self.damped:
                filled = filled + unit.graph.require(node.name, Factor).damp * mean
        return wanted, moment.diagonal_scatter(filled.to(moment.dtype))
