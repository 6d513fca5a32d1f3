"""Rotate a layer on both sides, and encode its columns as trellis codes: 1 to 4 bits a weight.

Source: QTIP (arXiv 2406.11235) without its fine-tuning. Rotations and LDLQ are those of quip-lower;
in the place of lattice points stand tiles, each a ring of bits whose windows of ``window`` bits
decode to one weight. A Viterbi search finds the best ring for a tile; its work doubles with each
bit of a window, the error falls by a few per cent. The published tiles have 16 rows and 16 columns.
Ours are single columns, so that columns see each other's errors, ``block`` of them at a time; the
levels of ``code=quadratic`` reach with windows of 10 bits what random ones need 14 for; ``search``
and ``rounds`` fit the scale to the layer's loss, and ``sweeps`` search each tile again with all
others fixed, which never raises it. ``bits`` may be any eighth: steps take in turn one bit more or
less. ``bits=allocated`` gives each layer the rate that allocate-rates chose for it.
``outputs=guided`` hands errors on to later rows as well, by the curvature that guide{outputs=true}
notes (YAQA, arXiv 2505.22988): once over all tiles, without sweeps.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
    after        @trellis   2 bits   window 10   rotated by 64 and 512   output error 3.3e-02
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator
from torch import Tensor

from qdc.format.trelliscode import TrellisCode
from qdc.numerics.hadamard import SEEDS
from qdc.numerics.ring_search import FACTORS, TRIED, RingCode, RingOptions, RingSearch
from qdc.numerics.tiling import LONGEST, USUAL, usual_height
from qdc.numerics.trellis import EIGHTHS, HISTORY, SCRATCH, TOGETHER, Code, Trellis, Window
from qdc.numerics.two_sided import TwoSidedMetric
from qdc.numerics.two_sided_rings import TwoSidedRings
from qdc.passkit import (
    CompensatedLowering,
    Field,
    Forecast,
    InvalidGraph,
    Kinds,
    Lowered,
    Node,
    Preset,
    Tensors,
    Unit,
    Work,
    model_validator,
)
from qdc.passkit.outputs import (
    DAMP,
    OutputDamp,
    Outputs,
    curvature_needs,
    output_factor,
    output_factor_effort,
)
from qdc.passkit.rotation import rotated, rotation_bytes

from .allocate_rates import Rate

GUIDED_READS_NOT = ("compensation", "target", "search", "sweeps")
"""Options of a search that counts all outputs alike."""
TILES_HELD = 6
"""Copies of a weight while tiles are quantized on both sides, and two squares that hand on."""
READS = 3
"""How often a search reads or writes the cost of a state, for each weight."""


def as_bits(given: object) -> object:
    """A number of bits, or ``allocated``: one message for both, which a union would give two of."""
    if given == "allocated":
        return given
    try:
        bits = float(given)  # type: ignore[arg-type]
        whole = 1 <= bits <= 4 and bits * EIGHTHS == int(bits * EIGHTHS)
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError("they are 1 to 4 in eighths, as 1.5 or 2.125, or allocated")
    return bits


class TrellisCoded(Lowered):
    """A layer as rings of bits, rotated on both sides."""

    tag: ClassVar[str] = "trellis"
    codec: TrellisCode


class TrellisLower(CompensatedLowering):
    """Rotate a layer on both sides, and encode its columns as trellis codes."""

    name: ClassVar[str] = "trellis-lower"
    rotates: ClassVar[bool] = True
    provides: ClassVar[Kinds] = (TrellisCoded,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "qtip": Preset(
            "stages(calibrate-mcs,sensitivity,trellis-lower{window=12 code=1mad height=16 width=16 "
            "block=16 scale=0.9}),pack",
            2,
            "arXiv 2406.11235",
        ),
        "qtip-shared": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},"
            "trellis-lower{asymmetry=1 sweeps=2 rounds=1}),pack",
            2,
            "arXiv 2406.11235, our loop",
        ),
    }

    bits: Annotated[float | Literal["allocated"], BeforeValidator(as_bits)] = Field(
        default=2.0,
        description="bits a weight, 1 to 4 in eighths, or each layer's own by allocate-rates",
    )
    window: Window = Field(default=10, description="bits that decode to one weight")
    code: Code = Field(default="quadratic", description="what a window stands for")
    height: int | None = Field(
        default=None,
        ge=1,
        le=LONGEST,
        description="most rows of a tile; if not given 128, with guided outputs a 32nd of all, 64 "
        "to 128",
    )
    width: int = Field(default=1, ge=1, le=64, description="columns of a tile")
    block: int = Field(
        default=8, ge=1, le=LONGEST, description="columns that hand their errors on together"
    )
    scale: float = Field(
        default=0.95,
        gt=0,
        le=10,
        description="root mean square of the weights, the levels' being 1",
    )
    search: bool = Field(
        default=False, description="try other scales around it by the layer's loss"
    )
    sweeps: int = Field(default=0, ge=0, le=100, description="sweeps over the tiles")
    rounds: int = Field(
        default=0,
        ge=0,
        le=100,
        description="refits of the scale, each with sweeps anew if any; guided outputs take one",
    )
    outputs: Outputs = "alike"
    output_damp: OutputDamp = DAMP
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="which rotations are drawn")

    @model_validator(mode="after")
    def _tiles_can_be(self) -> "TrellisLower":
        if (self.height or USUAL) * self.width > LONGEST:
            raise ValueError(f"a tile holds at most {LONGEST} weights")
        if self.block % self.width:
            raise ValueError(f"a block of {self.block} columns is no whole number of tiles")
        return self

    @model_validator(mode="after")
    def _guided_outputs_are_encoded_once(self) -> "TrellisLower":
        fields = type(self).model_fields
        guided = self.outputs == "guided"
        unread = GUIDED_READS_NOT if guided else ("output_damp",)
        for option in unread:
            if getattr(self, option) != fields[option].default:
                given = option.replace("_", "-")
                raise ValueError(f"outputs={self.outputs} does not read {given}")
        if guided and self.rounds > 1:
            raise ValueError("outputs=guided refits the scale once: rounds is 0 or 1")
        return self

    def needs(self) -> Kinds:
        """The layers' own rates, where those are asked for."""
        allocated = (Rate,) if self.bits == "allocated" else ()
        return (*super().needs(), *allocated, *curvature_needs(self.outputs))

    def forecast_codec(self, unit: Forecast | Unit, node: Node) -> TrellisCode:
        """Known from the options, the shape, and the layer's rate."""
        if self.bits == "allocated":
            rate = unit.graph.require(node.name, Rate).eighths
        else:
            rate = int(self.bits * EIGHTHS)
        return TrellisCode.of(
            node.rows,
            node.columns,
            rate,
            window=self.window,
            code=self.code,
            height=self.height or usual_height(node.rows, guided=self.outputs == "guided"),
            width=self.width,
        )

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """The factor rotated in fp64, then every search over the tiles."""
        weights, squares = node.rows * node.columns, node.columns**2
        nbytes, work = self.compensation_effort(unit, node)
        codec = self.forecast_codec(unit, node)
        states, kept = 1 << self.window, codec.tiling.size << self.window
        guided = self.outputs == "guided"
        tries = 1 + (len(FACTORS) - 1) * self.search * min(1.0, TRIED / node.rows)
        sweeps = 0 if guided else self.sweeps * (1 + self.rounds)
        passes = 2 * tries + sweeps
        work += Work(
            products=2 * (tries + sweeps) * 2 * weights * node.columns
            + 4 * passes * states * weights,
            exact=4 * squares * node.columns,
            elements=READS * passes * states * weights,
        )
        searched = max(HISTORY + SCRATCH, TOGETHER * (kept // 2 + states))
        nbytes += rotation_bytes(node.columns) + 4 * searched + 3 * 8 * weights
        if guided:
            more, factored = output_factor_effort(node)
            triangles = Work(products=2 * weights * node.rows, exact=2 * node.rows**3)
            return nbytes + more + TILES_HELD * 4 * weights, work + factored + triangles
        return nbytes, work

    def lower(self, unit: Unit, node: Node) -> tuple[TrellisCoded, Tensors]:
        """Rotate, encode, sweep; what is stored are rings, the scale and the seeds."""
        codec = self.forecast_codec(unit, node)
        rate = unit.graph.get(node.name, Rate) if self.bits == "allocated" else None
        allowed = None if rate is None else rate.stored_bytes
        if allowed is not None and codec.nbytes > allowed:
            raise InvalidGraph(
                f"the layer takes {codec.nbytes:,} bytes, its allocation counts on {allowed:,}",
                where=[f"%{node.name}"],
            )
        problem, term, seeds = rotated(
            self, unit, node, self.problem(unit, node), seed=self.seed, multiple=codec.width
        )
        code = RingCode(codec.trellis(problem.weight.device), codec.tiling)
        if self.outputs == "guided":
            rows = output_factor(unit, node, self.seed, self.output_damp)
            rings = TwoSidedRings(
                code,
                problem.weight,
                TwoSidedMetric(rows, problem.upper),
                columns=node.columns,
                block=self.block,
            )
            scale, states = rings.run(self.scale, refit=bool(self.rounds))
            return self.stored(codec, scale, states, seeds, code.trellis)
        search = RingSearch(
            RingOptions(
                self.compensation, self.block, self.scale, self.search, self.sweeps, self.rounds
            ),
            code,
            problem.weight,
            problem.upper,
            columns=node.columns,
            term=term,
        )
        scale, states = search.run()
        return self.stored(codec, scale, states, seeds, search.trellis)

    @staticmethod
    def stored(
        codec: TrellisCode, scale: Tensor, states: Tensor, seeds: Tensor, trellis: Trellis
    ) -> tuple[TrellisCoded, Tensors]:
        """What is stored of a layer."""
        working = {
            "codes": codec.stored_codes(states.flatten(1), trellis),
            "scale": scale.half().reshape(1),
            "seeds": seeds,
        }
        return TrellisCoded(codec=codec), working
