"""Store embedding and output head in blocks of ggml, as llama.cpp's files have them.

Each row is one token; no statistics are read. ``Q6_K`` is what llama.cpp gives the output head of
most files; its Q2_K files hold the embedding in Q2_K, and here it is Q6_K as well unless told. A
matrix whose columns are no whole blocks is stored as Q8_0, and a remark says so.

    before   %wte = embedding %input_ids   w f16[2048,256]
    after        @ggml-vocab   Q6_K   6 bits   weight error 3.0e-04
                 @packed       430,080 B   6 code bits/weight   6.562 in all
"""

from typing import ClassVar, Literal

from torch import Tensor

from qdc.format.ggml import Ggml
from qdc.numerics.ggmltypes import Fields, TypeName
from qdc.numerics.subblockgrid import SubblockGrid
from qdc.passkit import (
    Codec,
    Field,
    Kinds,
    LayerGraph,
    LoweredVocabulary,
    Node,
    Packed,
    Tensors,
    Unit,
    UnsupportedModel,
    VocabularyLowering,
    block_slices,
)

Type = Literal["Q6_K", "Q8_0", "Q3_K", "Q2_K"]


class GgmlVocabulary(LoweredVocabulary):
    """An embedding or an output head in blocks of ggml."""

    tag: ClassVar[str] = "ggml-vocab"
    codec: Ggml

    def text(self) -> str:
        """``Q6_K   6 bits   weight error 3.0e-04``."""
        return f"{self.codec.text()}   weight error {self.weight_error:.1e}"


class GgufVocab(VocabularyLowering):
    """Store embedding and output head in blocks of ggml, as llama.cpp's files have them."""

    name: ClassVar[str] = "gguf-vocab"
    annotates: ClassVar[Kinds] = (GgmlVocabulary, Packed)

    embedding: Type = Field(default="Q6_K", description="type of the embedding's blocks")
    head: Type = Field(default="Q6_K", description="type of the output head's blocks")

    def wanted(self, node: Node) -> TypeName:
        """The type that a matrix has if its columns are whole blocks of it."""
        return self.embedding if node.op == "embedding" else self.head

    def check(self, graph: LayerGraph) -> None:
        """There is a vocabulary, and its rows are whole blocks."""
        super().check(graph)
        for node in graph.vocabulary():
            self.codec(node)

    def run(self, unit: Unit) -> None:
        """Quantize both; say where another type had to be taken."""
        super().run(unit)
        for node in unit.graph.vocabulary():
            found = self.codec(node).type
            if found != self.wanted(node):
                reason = f"{node.columns} columns are no whole blocks: {found}, not "
                unit.remark("missed", node, reason=reason + self.wanted(node))

    def codec(self, node: Node) -> Ggml:
        """The codec of one matrix. Raises ``UnsupportedModel`` where no block fits its rows."""
        kind = Ggml.fitting(self.wanted(node), node.columns)
        if kind is None:
            raise UnsupportedModel(
                "rows are no whole blocks of ggml, which have 32 columns at least",
                where=[f"%{node.name}: {node.columns} columns"],
                help="leave gguf-vocab out of the pipeline",
            )
        return Ggml(rows=node.rows, columns=node.columns, type=kind)

    def lower(self, weight: Tensor, codec: Codec) -> Tensors:
        """Fit the levels of each block, all columns alike, and round to them."""
        assert isinstance(codec, Ggml)
        kind, blocks = codec.block_type, []
        ones = weight.new_ones(kind.width)
        for part in block_slices(codec.columns, kind.width):
            block = weight[:, part]
            grid = SubblockGrid.fit(block, kind, ones)
            blocks.append(grid.encode(grid.written(grid.codes(block))))
        return codec.working(Fields.joined(blocks))

    def note(self, codec: Codec, error: float) -> GgmlVocabulary:
        """The blocks, and what they cost."""
        assert isinstance(codec, Ggml)
        return GgmlVocabulary(codec=codec, weight_error=error)
