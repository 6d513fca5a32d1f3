"""Keep the most salient elements in 8 bits and binarise the others, column by column.

Source: PB-LLM (arXiv 2310.00034) and its code. Elements of salience w^2/U_jj^2 above a quantile of
the whole matrix are marked, once, on the original weights; they get an 8-bit grid, the others a
mean and a scale, for each row. Then GPTQ's loop chooses the codes on these fixed levels. Quirks of
the code, each an option: ``mean=zeroed`` counts marked elements as zeros in the mean and scale of
the others, and ``span=all`` spans the 8-bit grid over all weights of the row. Ours: ``group``,
which gives each group of columns its own scales; ``rounds`` and ``sweeps``, as for ``gptq-lower``.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
    after        @pb-llm   10.0% in 8 bits   whole rows   output error 6.4e-02
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qdc.format.maskedbinary import CODE_BITS, MaskedBinary
from qdc.numerics.importance import importance
from qdc.numerics.partbinary import residual
from qdc.numerics.partition import element_quantile
from qdc.numerics.partitiongrid import PartitionGrid
from qdc.numerics.parts import BinaryPart, UniformPart
from qdc.passkit import (
    BlockLowering,
    Factor,
    Field,
    Forecast,
    Kinds,
    Lowered,
    Node,
    Preset,
    Tensors,
    Unit,
    Work,
    block_slices,
    model_validator,
    target,
)

SOURCE = "arXiv 2310.00034"
READS = 60
"""About how often mask and scales read or write each weight, sorting included."""


class PbLlm(Lowered):
    """A layer as signs, and 8-bit codes at marked elements."""

    tag: ClassVar[str] = "pb-llm"
    codec: MaskedBinary


class PbLlmLower(BlockLowering):
    """Keep the most salient elements in 8 bits and binarise the others, column by column."""

    name: ClassVar[str] = "pb-llm-lower"
    provides: ClassVar[Kinds] = (PbLlm,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "pb-llm": Preset(
            "stages(calibrate-mcs,sensitivity,"
            "pb-llm-lower{rounds=0 sweeps=0 mean=zeroed span=all}),pack",
            1.7,
            SOURCE,
        ),
        "pb-llm-shared": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},pb-llm-lower{asymmetry=1}),pack",
            1.7,
            SOURCE,
        ),
    }

    low: float = Field(default=0.9, ge=0, le=1, description="share of elements that are binarised")
    metric: Literal["hessian", "magnitude"] = Field(
        default="hessian", description="salience of a weight: w^2 / U_jj^2, or |w|"
    )
    group: int = Field(
        default=0, ge=0, le=1 << 16, description="columns of a quantile and scales; 0 for all"
    )
    mean: Literal["masked", "zeroed"] = Field(
        default="masked", description="mean and scale of binarised elements, or zeros among them"
    )
    span: Literal["marked", "all"] = Field(
        default="marked", description="weights of a row that the 8-bit grid spans"
    )

    @model_validator(mode="after")
    def _share_ignores_nothing(self) -> "PbLlmLower":
        unread = {
            "low=0": ("metric", "mean") if self.low == 0 else (),
            "low=1": ("metric", "span") if self.low == 1 else (),
        }
        for why, options in unread.items():
            for option in options:
                if getattr(self, option) != type(self).model_fields[option].default:
                    raise ValueError(f"{why} does not read {option}")
        return self

    def codec(self, node: Node) -> MaskedBinary:
        """The format of a layer: how many elements are marked follows from its shape."""
        width = min(self.group or node.columns, node.columns)
        widths = (part.stop - part.start for part in block_slices(node.columns, width))
        marked = sum(self.marked(node.rows * width) for width in widths)
        return MaskedBinary(rows=node.rows, columns=node.columns, group=self.group, salient=marked)

    def marked(self, elements: int) -> int:
        """How many of so many elements stay in 8 bits."""
        return elements - round(self.low * elements)

    def forecast_codec(self, unit: Forecast | Unit, node: Node) -> MaskedBinary:
        """Known from the shape."""
        return self.codec(node)

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """The loop in fp64 metrics of groups; a refit holds four numbers a weight, three times."""
        codec = self.codec(node)
        nbytes, work = self.loop_effort(unit, node, codec.width)
        weights = node.rows * node.columns
        if self.feedback:
            nbytes += 3 * 8 * codec.width**2
        if self.feedback and self.rounds:
            nbytes += 12 * 4 * node.rows * codec.width
            work += Work(products=8 * self.rounds * weights * codec.width)
        return nbytes + 2 * codec.working_bytes, work + Work(elements=READS * weights)

    def lower(self, unit: Unit, node: Node) -> tuple[PbLlm, Tensors]:
        """Mark elements of the original weights, then quantize the groups left to right."""
        codec = self.codec(node)
        upper = unit.get(unit.graph.require(node.name, Factor).tensor)
        original = target(unit, node, upper)
        salience = importance(original, upper) if self.metric == "hessian" else original.abs()
        parts = [
            element_quantile(salience[:, part], self.marked(salience[:, part].numel()))
            for part in codec.groups
        ]

        def fit(index: int, block: Tensor, triangle: Tensor) -> tuple[PartitionGrid, Tensor]:
            return self.fit_group(block, parts[index])

        grids, dense = self.quantize(unit, node, codec.groups, fit)
        return PbLlm(codec=codec), working(grids, [dense[:, part] for part in codec.groups])

    def fit_group(self, block: Tensor, marked: Tensor) -> tuple[PartitionGrid, Tensor]:
        """Levels of a group, and each element on its nearest."""
        mask = (~marked).to(block.dtype)
        if self.mean == "zeroed":
            fitted, _ = residual(block * mask, torch.ones_like(mask), 1)
        else:
            fitted, _ = residual(block, mask, 1)
        low = BinaryPart(fitted, has_mean=True)
        high = UniformPart.fit(block, marked if self.span == "marked" else None, CODE_BITS)
        allowed = torch.stack([(~marked).any(0), marked.any(0)])
        levels = (low.write(low.basis(block)), high.write(high.basis(block)))
        return PartitionGrid(marked.to(torch.uint8), (low, high), allowed), torch.where(
            marked, levels[1], levels[0]
        )


def working(grids: list[PartitionGrid], written: list[Tensor]) -> dict[str, Tensor]:
    """Working tensors of the codec, from the levels of each group and the group on them."""
    found: dict[str, list[Tensor]] = {}
    for grid, dense in zip(grids, written, strict=True):
        low, high = grid.grids
        assert isinstance(low, BinaryPart)
        assert isinstance(high, UniformPart)
        marked = grid.parts > 0
        tensors = {
            "marked": grid.parts,
            "signs": low.signs(dense)[0].to(torch.int8).masked_fill(marked, -1),
            "codes": high.codes(dense).to(torch.uint8).masked_fill(~marked, 0),
            "mean": low.mean[:, None].half(),
            "scale": low.row_scale.T.half(),
            "minimum": high.minimum[:, None].half(),
            "step": high.step[:, None].half(),
        }
        for suffix, tensor in tensors.items():
            found.setdefault(suffix, []).append(tensor)
    return {suffix: torch.cat(tensors, dim=1) for suffix, tensors in found.items()}
