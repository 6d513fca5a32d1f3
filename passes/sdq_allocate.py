"""Say how often each layer is sampled, and with which parameters it is modulated.

Source: SDQ-LLM (arXiv 2510.03275), MultiOSR: layers whose weights spread little are sampled more
often. ``budget=strict`` (ours) keeps the mean ratio at or below the target, where the published
rounding may miss it. ``search`` is the published search for the modulator's parameters: 128 rows
and 2048 columns of one layer, the one with the most columns for its rows (a down projection).

    before   %h0.q = linear %x   w f16[64,512]
    after        @oversampling  ternary   160 codes for 128 columns   scale 0.9 x quantile 0.9 ...
"""

from typing import ClassVar, Literal

import numpy as np
import torch

from qdc.format.sigmadelta import HIGHEST_RATIO
from qdc.numerics.hadamard import SEEDS, RandomHadamard, random_seed
from qdc.numerics.oversampling import Spread, allocate_ratios
from qdc.numerics.random_numbers import below, permutation
from qdc.numerics.sigma_delta import Levels, Shape, SigmaDelta
from qdc.numerics.sigma_search import search_shape
from qdc.passkit import (
    BLOCK,
    Annotation,
    Field,
    Forecast,
    InvalidCheckpoint,
    Kinds,
    Node,
    Pass,
    Tensor,
    Unit,
    Work,
    model_validator,
)

ROWS, COLUMNS = 128, 2048
"""Of the layer that a search looks at."""
PART = 1 << 22
"""Numbers of a weight that are read at a time."""
TRIES = 360


class Oversampling(Annotation):
    """How a layer is to be sampled and modulated."""

    tag: ClassVar[str] = "oversampling"

    length: int = Field(ge=BLOCK, le=HIGHEST_RATIO * BLOCK)
    """Codes for 128 columns."""
    levels: Levels
    sd_scale: float = Field(gt=0, le=10)
    p_scale: float = Field(gt=0, le=1)
    p_cut: float = Field(ge=0, lt=1)

    @property
    def shape(self) -> Shape:
        """The modulator's parameters."""
        return Shape(self.sd_scale, self.p_scale, self.p_cut)

    def text(self) -> str:
        """``ternary   160 codes for 128 columns   scale 0.9 x quantile 0.9   cut at 0.5``."""
        cut = f"   cut at quantile {self.p_cut:g}" if self.levels == "ternary" else ""
        scale = f"scale {self.sd_scale:g} x quantile {self.p_scale:g}"
        return f"{self.levels}   {self.length} codes for {BLOCK} columns   {scale}{cut}"


class SdqAllocate(Pass):
    """Say how often each layer is sampled, and with which parameters it is modulated."""

    name: ClassVar[str] = "sdq-allocate"
    provides: ClassVar[Kinds] = (Oversampling,)
    reads_all: ClassVar[bool] = False

    ratio: float = Field(default=1.25, ge=1, le=HIGHEST_RATIO, description="mean codes of a column")
    levels: Levels = Field(default="ternary", description="codes: -1, 0, +1, or -1, +1")
    scope: Literal["model", "layer"] = Field(
        default="model", description="by the spread of all weights (MultiOSR), or equal ratios"
    )
    budget: Literal["strict", "rounded"] = Field(
        default="strict", description="mean at or below the ratio, or rounded as published"
    )
    grid: float = Field(default=0.25, ge=1 / BLOCK, le=1, description="step of the ratios")
    sd_scale: float = Field(
        default=Shape().sd_scale, gt=0, le=10, description="scale, in units of the quantile"
    )
    p_scale: float = Field(
        default=Shape().p_scale, gt=0, le=1, description="quantile that gives a row's scale"
    )
    p_cut: float = Field(
        default=Shape().p_cut, ge=0, lt=1, description="quantile below which a code is 0"
    )
    search: bool = Field(default=False, description="search these three on one layer instead")
    seed: int = Field(default=42, ge=0, lt=SEEDS, description="what search=true looks at")

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "SdqAllocate":
        # A seed that nothing draws by is no mistake: --seed gives it to every pass of a pipeline.
        unread = {
            "scope=layer": ("budget", "grid") if self.scope == "layer" else (),
            "search=true": ("sd_scale", "p_scale", "p_cut") if self.search else (),
            "levels=binary": ("p_cut",) if self.levels == "binary" else (),
        }
        for why, options in unread.items():
            for option in options:
                if getattr(self, option) != type(self).model_fields[option].default:
                    raise ValueError(f"{why} does not read {option.replace('_', '-')}")
        return self

    def whole_model(self) -> bool:
        """Ratios follow from all weights; a search gives all layers the same parameters."""
        return self.scope == "model" or self.search

    def run(self, unit: Unit) -> None:
        """Read the spread of every layer, allocate, search, annotate."""
        nodes = list(unit.layers())
        if not nodes:
            return  # all of them are kept
        ratios = dict.fromkeys((node.name for node in nodes), self.ratio)
        if self.scope == "model":
            ratios = self.allocate(unit, nodes)
        shape = self.searched(unit, nodes) if self.search else self.given
        for node in nodes:
            unit.annotate(node, self.note(ratios[node.name], shape))
            if ratios[node.name] != self.ratio:
                unit.remark("passed", node, ratio=ratios[node.name], mean=self.ratio)

    def forecast(self, unit: Forecast) -> None:
        """Every layer at the mean ratio, and between what the sizes may lie instead."""
        for node in unit.layers():
            if self.scope == "model":
                unit.work(4 * 2 * PART, Work(elements=2 * node.rows * node.columns))
            unit.annotate(node, self.note(self.ratio, self.given))
        if self.search:
            codes = ROWS * COLUMNS * self.ratio
            unit.work(int(4 * 6 * codes), Work(elements=10 * TRIES * codes))
        if self.scope == "model":
            weights = sum(node.rows * node.columns for node in unit.layers())
            bits = 1 if self.levels == "binary" else 1.6
            over = sum(node.rows for node in unit.layers())  # a row ends on a whole byte
            if self.budget == "rounded":
                over += int(2 * self.grid * bits * weights / 8)
            unit.orders_vary(int((self.ratio - 1) * bits * weights / 8) + over, over)

    @property
    def given(self) -> Shape:
        """The parameters as the options have them."""
        return Shape(self.sd_scale, self.p_scale, self.p_cut)

    def note(self, ratio: float, shape: Shape) -> Oversampling:
        """The annotation of a layer; the number of codes is cut to a whole one."""
        return Oversampling(length=int(BLOCK * ratio), levels=self.levels, **shape._asdict())

    def allocate(self, unit: Unit, nodes: list[Node]) -> dict[str, float]:
        """MultiOSR over the regions; layers outside of all of them count as one more."""
        home = {name: region.name for region in unit.graph.regions for name in region.nodes}
        groups: dict[str, list[Node]] = {}
        for node in nodes:
            groups.setdefault(home.get(node.name, ""), []).append(node)
        spreads = [
            Spread(
                np.array([deviation(unit, node) for node in group]),
                np.array([float(node.rows * node.columns) for node in group]),
            )
            for group in groups.values()
        ]
        found = allocate_ratios(
            spreads, self.ratio, self.grid, HIGHEST_RATIO, strict=self.budget == "strict"
        )
        return {
            node.name: ratio
            for group, ratios in zip(groups.values(), found, strict=True)
            for node, ratio in zip(group, ratios.tolist(), strict=True)
        }

    def searched(self, unit: Unit, nodes: list[Node]) -> Shape:
        """The best parameters on part of one layer, as the release draws it."""
        longest = max(node.columns / node.rows for node in nodes)
        likely = [node for node in nodes if node.columns / node.rows == longest]
        node = likely[below(len(likely), 1, "sdq layer", self.seed)[0]]
        (weight,) = unit.row_parts(node, node.rows)
        blocks = sample(weight, self.seed)
        rotation = RandomHadamard.of(blocks.shape[1], random_seed("sdq", self.seed), unit.device)
        code = SigmaDelta(
            rotation, int(BLOCK * self.ratio) * len(rotation.signs) // BLOCK, self.levels
        )
        try:
            shape, error = search_shape(code, blocks)
        except OverflowError as failure:
            raise InvalidCheckpoint(
                f"weights do not fit fp16 scales: {failure}",
                where=[f"%{node.name}"],
                help="bring the weights of the checkpoint below 65504",
            ) from failure
        unit.remark("note", node, searched="modulator", weight_error=error, **shape._asdict())
        return shape


def deviation(unit: Unit, node: Node) -> float:
    """Standard deviation of a layer's weights, read part by part, in fp64."""
    total = squares = 0.0
    for part in unit.row_parts(node, max(1, PART // node.columns)):
        wide = part.double()
        total += float(wide.sum())
        squares += float(wide.square().sum())
    count = node.rows * node.columns
    return float(max(0.0, squares / count - (total / count) ** 2) ** 0.5)


def sample(weight: Tensor, seed: int) -> Tensor:
    """Some rows and permuted columns of a weight, cut into rows of 128: f32[n, 128].

    Fewer columns than 128 make one block of their own width.
    """
    rows, columns = weight.shape
    at = torch.tensor(permutation(rows, "sdq rows", seed)[:ROWS])
    over = torch.tensor(permutation(columns, "sdq columns", seed)[:COLUMNS])
    picked = weight[at.to(weight.device)][:, over.to(weight.device)]
    if columns < BLOCK:
        return picked
    whole = picked.shape[1] // BLOCK * BLOCK
    return picked[:, :whole].reshape(-1, BLOCK)
