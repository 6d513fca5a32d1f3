"""Sum {0, 1} planes with coefficients that each row and group takes from a table of the layer.

Source: SBVR (arXiv 2509.18172). ``search=published`` searches for coefficients group after group,
as its code does, and lets later groups take lines that are there. Ours: ``search=fitted``, which
fits free coefficients to all groups at once, clusters them to a table, and looks up the best line
for each group; ``offset``, one number more a line, without which 0 is always a level; and with
feedback refits, which choose the line anew in the metric of what later columns cannot compensate.
The rotation of the whole model that the publication runs before is not part of this pass.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
    after        @sbvr  4 groups of 128   2 planes   table of 256   output error 5.9e-02
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from qdc.format.bitplanes import MOST_PLANES
from qdc.format.sharedtable import MOST_LINES, SharedTable
from qdc.numerics.coefficientsearch import CoefficientSearch
from qdc.numerics.coefficienttable import TableGrid, fit_table
from qdc.passkit import (
    BlockLowering,
    Field,
    Forecast,
    Kinds,
    Lowered,
    Node,
    Preset,
    Tensor,
    Tensors,
    Unit,
    Work,
    block_slices,
    model_validator,
)

LOOKS = 40
"""Elementary steps for each pair of a group and a line: look-ups of bounds and sums."""


class Sbvr(Lowered):
    """A layer as planes of {0, 1} with a table of coefficients."""

    tag: ClassVar[str] = "sbvr"
    codec: SharedTable


class SbvrLower(BlockLowering):
    """Sum {0, 1} planes with coefficients that each row and group takes from a table."""

    name: ClassVar[str] = "sbvr-lower"
    provides: ClassVar[Kinds] = (Sbvr,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "sbvr": Preset(
            "stages(calibrate-mcs,sensitivity,sbvr-lower{compensation=diag feedback=false}),pack",
            2,
            "arXiv 2509.18172, search vectorised",
        ),
        "sbvr-shared": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},"
            "sbvr-lower{rounds=5 asymmetry=1 offset=true}),pack",
            2,
            "arXiv 2509.18172, its format with offsets",
        ),
    }

    group: int = Field(
        default=128, ge=8, le=1 << 16, multiple_of=8, description="columns of a group"
    )
    planes: int = Field(default=2, ge=1, le=MOST_PLANES, description="bits of a weight")
    search: Literal["fitted", "published"] = Field(
        default="fitted", description="all groups at once (ours), or one by one, as published"
    )
    lines: int = Field(
        default=256,
        ge=1,
        le=MOST_LINES,
        description="most lines of the table; above 256 at 16 bits",
    )
    offset: bool = Field(
        default=False, description="a line also holds the value of a weight without a bit (ours)"
    )
    refits: int = Field(
        default=2, ge=0, le=100, description="fits of each line to the groups that choose it"
    )
    seed: int = Field(
        default=0, ge=0, lt=1 << 32, description="of the first centres of search=fitted"
    )

    @model_validator(mode="after")
    def _search_ignores_nothing(self) -> "SbvrLower":
        if self.search == "published" and self.offset:
            raise ValueError("search=published proposes no offset: leave it out, or search=fitted")
        # A seed that nothing draws by is no mistake: --seed gives it to every pass of a pipeline.
        default = type(self).model_fields["refits"].default
        if self.search == "published" and self.refits != default:
            raise ValueError("search=published does not read refits")
        return self

    def codec(self, node: Node, lines: int) -> SharedTable:
        """The format of a layer whose table has so many lines."""
        return SharedTable(
            rows=node.rows,
            columns=node.columns,
            group=self.group,
            planes=self.planes,
            offset=self.offset,
            lines=lines,
        )

    def most_lines(self, node: Node) -> int:
        """No more lines than groups."""
        return min(self.lines, node.rows * -(-node.columns // self.group))

    def forecast_codec(self, unit: Forecast | Unit, node: Node) -> SharedTable | None:
        """The format of a layer; unknown where the weights decide how many lines it gets."""
        return None if self.search == "published" else self.codec(node, self.most_lines(node))

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """The loop; looking at lines, and small systems in fp64."""
        weights, lines = node.rows * node.columns, self.most_lines(node)
        groups = node.rows * -(-node.columns // self.group)
        nbytes, work = self.loop_effort(unit, node, self.group)
        levels = 2**self.planes
        if self.search == "fitted":
            # Clusters, refits of the lines, and each block's own look at them.
            pairs = groups * lines * (1 + self.refits)
            looks = Work(elements=LOOKS * pairs * levels + 100 * weights * levels)
        else:
            looks = Work(elements=LOOKS * groups * 2e5 * levels)
        exact = 2 * (self.planes + 1) * self.feedback * self.rounds * weights * self.group
        held = 16 * (1 << 20) * levels + 8 * 8 * weights
        return nbytes + held, work + looks + Work(exact=exact)

    def lower(self, unit: Unit, node: Node) -> tuple[Sbvr, Tensors]:
        """Quantize the groups of a layer left to right, with one table."""
        slices = block_slices(node.columns, self.group)
        search = CoefficientSearch(self.planes, self.lines)
        if self.search == "fitted":
            table = fit_table(
                unit.weight(node),
                slices,
                self.planes,
                offset=self.offset,
                lines=self.most_lines(node),
                refits=self.refits,
                seed=self.seed,
            )

        def fit(index: int, block: Tensor, triangle: Tensor) -> tuple[TableGrid, Tensor]:
            if self.search == "fitted":
                grid = TableGrid(table, table.nearest_lines(block))
            else:
                chosen = search.place(block)
                grid = TableGrid(search.result(), chosen)
            return grid, grid.round(block)

        grids, dense = self.quantize(unit, node, slices, fit)
        # Lines are only ever added, so what earlier groups chose stands in the last table too.
        final = grids[-1].table if self.search == "published" else table
        working = SharedTable.working(final, grids, dense, self.group)
        return Sbvr(codec=self.codec(node, len(final.lines.planes))), working
