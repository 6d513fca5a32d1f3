"""Store each weight as -1, 0 or +1 times a scale of its row and group of columns.

Source: absmean of BitNet b1.58 (arXiv 2402.17764), with error feedback in place of training.

    before   %h0.q = linear %x   w f16[64,512]
    after        @ternary  1.6 bits   output error 3.9e-02
"""

from typing import ClassVar, Self

import torch

from qdc.passkit import (
    Codec, Factor, Field, Forecast, Grid, Kinds, Lowered, Lowering, Node, Tensor, Tensors, Unit,
    ValueType, block_slices, pack_trits, quantize_on_grids, target, unpack_trits,
)  # fmt: skip


class TernaryCodec(Codec):
    """W = scale * code. Five codes make a byte; a scale is fp16."""

    name: ClassVar[str] = "ternary"
    group: int = Field(gt=0, le=1 << 16)

    @property
    def payload_bits(self) -> int:
        """A fifth of a byte for each code."""
        return -(-8 * self.rows * self.columns // 5)

    def specification(self) -> dict[str, ValueType]:
        """Codes, each row on whole bytes, and scales."""
        return {
            "codes": ValueType(dtype="u8", shape=(self.rows, -(-self.columns // 5))),
            "scale": ValueType(dtype="f16", shape=(self.rows, -(-self.columns // self.group))),
        }

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Codes, int8 in the working form, to bytes."""
        return {**working, "codes": pack_trits(working["codes"])}

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Bytes to codes."""
        return {**stored, "codes": unpack_trits(stored["codes"], self.columns)}

    def dense(self, working: Tensors) -> Tensor:
        """Each code times the scale of its group, exact in fp32."""
        scale = working["scale"].float().repeat_interleave(self.group, 1)
        return scale[:, : self.columns] * working["codes"]


class TernaryGrid(Grid):
    """The levels -scale, 0 and +scale of each row of a group."""

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale.half().float()

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """The level nearest to each number of a column."""
        return torch.where(target.abs() > self.scale / 2, target.sign() * self.scale, 0.0)

    def refit(self, block: Tensor, dense: Tensor, metric: Tensor) -> tuple[Self, Tensor]:
        """The best scale of each row for its codes; one without codes stays as it is."""
        codes = dense.sign()
        best = (codes @ metric * block).sum(1) / (codes @ metric * codes).sum(1)
        grid = type(self)(torch.where(best > 0, best, self.scale))
        return grid, grid.scale[:, None] * codes


class Ternary(Lowered):
    """A layer as ternary codes and scales."""

    tag: ClassVar[str] = "ternary"
    codec: TernaryCodec


class TernaryLower(Lowering):
    """Store each weight as -1, 0 or +1 times a scale of its row and group of columns."""

    name: ClassVar[str] = "ternary-lower"
    requires: ClassVar[Kinds] = (Factor,)
    provides: ClassVar[Kinds] = (Ternary,)
    group: int = Field(default=128, ge=8, le=1 << 16, description="columns of a scale")
    rounds: int = Field(default=2, ge=0, le=100, description="refits of the scales")

    def forecast_codec(self, unit: Forecast | Unit, node: Node) -> TernaryCodec:
        """The format of a layer, which ``qdc plan`` counts."""
        return TernaryCodec(rows=node.rows, columns=node.columns, group=self.group)

    def lower(self, unit: Unit, node: Node) -> tuple[Ternary, Tensors]:
        """Quantize one group after the other."""
        upper = unit.get(unit.graph.require(node.name, Factor).tensor)
        weight, groups = target(unit, node, upper), block_slices(node.columns, self.group)
        grids, dense = quantize_on_grids(
            weight, upper, groups, lambda b: TernaryGrid(b.abs().mean(dim=1)), rounds=self.rounds
        )
        scale = torch.stack([grid.scale for grid in grids], dim=1)
        working = {"codes": dense.sign().to(torch.int8), "scale": scale.half()}
        return Ternary(codec=self.forecast_codec(unit, node)), working
