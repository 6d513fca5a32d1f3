"""Fill the blocks of llama.cpp's file types, their scales and minima refitted with feedback.

A block of ggml has one or two fp16 super-scales and, for each 16 columns, small integers that
multiply them. llama.cpp rounds each weight once, with the diagonal of the moment of visible text as
its importance. Here codes are chosen column by column, each seeing the errors of the others, and
the integers and super-scales of a block are refitted in the metric of what later columns cannot
compensate (Schur complement), drift taken back by ``asymmetry``. What is stored is a block of ggml,
byte for byte, and fills the tensor of a GGUF file. ``type=Q2_K`` is the mix that llama.cpp calls
so: values, outputs of the attention and ``down`` in Q3_K. A layer whose columns are no whole
blocks is stored as Q8_0, and a remark says so. Source of the loop: related-systems.md A4, A5.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.1
    after        @ggml      Q2_K   2 bits   output error 3.1e-02
"""

from typing import ClassVar, Literal

from torch import Tensor

from qdc.format.ggml import Ggml
from qdc.gguf.names import MIXED, naming_role
from qdc.numerics.ggmltypes import TYPES, Fields, TypeName
from qdc.numerics.subblockgrid import SubblockGrid
from qdc.passkit import (
    BlockLowering,
    Field,
    Forecast,
    Kinds,
    LayerGraph,
    Lowered,
    Node,
    Preset,
    Tensors,
    Unit,
    UnsupportedModel,
    Work,
    block_metric,
    block_slices,
)

LOOP = "stages(calibrate-cross,sensitivity{damp=0.1},gguf-lower{%s}),pack"


class GgmlBlocks(Lowered):
    """A layer in blocks of ggml."""

    tag: ClassVar[str] = "ggml"
    codec: Ggml


class GgufLower(BlockLowering):
    """Fill the blocks of llama.cpp's file types, their scales and minima refitted with feedback."""

    name: ClassVar[str] = "gguf-lower"
    provides: ClassVar[Kinds] = (GgmlBlocks,)
    presets: ClassVar = {
        "gguf": Preset("gguf-vocab," + LOOP % "asymmetry=1", takes="gguf-lower"),
        "gguf-q3": Preset("gguf-vocab," + LOOP % "asymmetry=1 type=Q3_K"),
        "gguf-ternary": Preset("gguf-vocab," + LOOP % "asymmetry=1 type=TQ2_0"),
    }

    rounds: int = Field(
        default=3, ge=0, le=100, description="refits of the levels, each with feedback anew"
    )
    type: Literal["Q2_K", "Q2_K_S", "Q3_K", "TQ2_0", "Q2_0", "Q1_0"] = Field(
        default="Q2_K", description="of the blocks; Q2_K holds some layers in Q3_K, Q2_K_S none"
    )

    def check(self, graph: LayerGraph) -> None:
        """Every layer has whole blocks of some type."""
        super().check(graph)
        wrong = [node for node in graph.layers() if self.stored_type(graph, node) is None]
        if wrong:
            raise UnsupportedModel(
                f"rows are no whole blocks of {self.type}, nor of Q8_0, which stands in for it",
                where=[f"%{node.name}: {node.columns} columns" for node in wrong],
                help="compile it with another quantizer: ggml's blocks have 32 columns at least",
            )

    def wanted(self, graph: LayerGraph, node: Node) -> TypeName:
        """The type that a layer has if its columns are whole blocks of it."""
        if self.type == "Q2_K" and naming_role(graph.model.family, node.path) in MIXED:
            return "Q3_K"
        return "Q2_K" if self.type == "Q2_K_S" else self.type

    def stored_type(self, graph: LayerGraph, node: Node) -> TypeName | None:
        """The type that a layer is stored in; None if there is none."""
        return Ggml.fitting(self.wanted(graph, node), node.columns)

    def codec(self, graph: LayerGraph, node: Node) -> Ggml:
        """The codec of one layer."""
        kind = self.stored_type(graph, node)
        assert kind is not None
        return Ggml(rows=node.rows, columns=node.columns, type=kind)

    def forecast_codec(self, unit: Forecast, node: Node) -> Ggml:
        """What a layer will be stored as; known from the options and its columns."""
        return self.codec(unit.graph, node)

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """The loop, and for each refit a few products with the metric of a block."""
        kind = self.codec(unit.graph, node).block_type
        nbytes, work = self.loop_effort(unit, node, kind.width)
        weights = node.rows * node.columns
        refits = self.feedback * self.rounds * weights * kind.width
        return nbytes, work + Work(products=8 * refits, elements=300 * weights)

    def lower(self, unit: Unit, node: Node) -> tuple[GgmlBlocks, Tensors]:
        """Quantize the blocks of a layer left to right."""
        codec, wanted = self.codec(unit.graph, node), self.wanted(unit.graph, node)
        kind = codec.block_type
        if codec.type != wanted:
            width = TYPES[wanted].width
            reason = f"{node.columns} columns are no blocks of {width}: {codec.type}, not {wanted}"
            unit.remark("missed", node, reason=reason)

        def fit(index: int, block: Tensor, triangle: Tensor) -> tuple[SubblockGrid, Tensor]:
            weights = block_metric(triangle).full.diagonal()
            grid = SubblockGrid.fit(block, kind, weights)
            return grid, grid.written(grid.codes(block))

        slices = block_slices(node.columns, kind.width)
        grids, dense = self.quantize(unit, node, slices, fit)
        blocks = [grid.encode(dense[:, part]) for grid, part in zip(grids, slices, strict=True)]
        return GgmlBlocks(codec=codec), codec.working(Fields.joined(blocks))
