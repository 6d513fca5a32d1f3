"""What lowerings to partitioned binary blocks share: the search for the partition, and the format.

A block is cut into salient columns and two magnitude classes of the others (of both, if asked for),
each part is binarised by the fit that a subclass brings, and the loop of ``BlockLowering`` may then
choose signs, and classes, anew. Source: related-systems.md 7, 9, 18, B6.
"""

from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from qdc.format.codec import Lowered, Tensors
from qdc.format.partitionedbinary import PartitionedBinary, ScaleForm
from qdc.ir.annotations import Moment
from qdc.ir.graph import Node
from qdc.numerics.blocks import BLOCK, block_slices, block_widths
from qdc.numerics.importance import importance
from qdc.numerics.partbinary import PartFit
from qdc.numerics.partition import (
    SALIENT,
    SALIENT_SPARSE,
    SPARSE,
    column_partition,
    magnitude_split,
    salient_columns,
)
from qdc.numerics.partitiongrid import PartitionGrid
from qdc.numerics.parts import BinaryPart
from qdc.passkit.block_lowering import BlockLowering
from qdc.pipeline.passbase import Kinds
from qdc.streaming.forecast import Forecast
from qdc.streaming.unit import Unit
from qdc.streaming.work import Work

TRIAL_READS = 20
"""About how often one trial of a search reads or writes each weight, for ``qdc plan``."""
BLOCK_COPIES = 24
"""Copies of a block that fits and refits of its parts hold."""
CLASS_ORDER, SALIENT_ORDER = 1, 2


class PartitionedLowered(Lowered):
    """A layer as signs and classes with scales for each part."""

    codec: PartitionedBinary
    salient: float = Field(ge=0, le=1)
    """Share of the columns that are salient."""
    sparse: float = Field(ge=0, le=1)
    """Share of the elements in the class of large magnitude."""

    def text(self) -> str:
        """``4 blocks   row means   output error 1.3e-02   salient 8.2%   sparse 31%``."""
        shares = f"salient {self.salient:.1%}   sparse {self.sparse:.0%}"
        return f"{super().text()}   {shares}"


class PartitionLowering(BlockLowering):
    """A pass that cuts each block into parts and binarises every part for itself."""

    metric: Literal["hessian", "magnitude"] = Field(
        default="hessian", description="salience of a weight: w^2 / U_jj^2, or |w|"
    )
    search: Literal["salience", "weights"] = Field(
        default="salience", description="what searches fit: the salience itself (release), or w"
    )
    percentiles: Literal["zeroed", "masked"] = Field(
        default="zeroed", description="of other columns with zeros in place, or without"
    )
    salient: int = Field(
        default=49, ge=0, le=1 << 16, description="most salient columns of a block; 0 for none"
    )
    splits: int = Field(
        default=81, ge=0, le=1000, description="percentiles tried for the classes; 0 for one class"
    )
    reassign: bool = Field(
        default=False, description="choose an element's class anew with its sign (ours)"
    )

    @model_validator(mode="after")
    def _partition_ignores_nothing(self) -> "PartitionLowering":
        if self.metric == "magnitude" and self.search != "salience":
            raise ValueError("metric=magnitude does not read search: the salience is the weight")
        for searched in ("salient", "splits"):
            if not getattr(self, searched) and self.percentiles != "zeroed":
                raise ValueError(f"{searched}=0 does not read percentiles")
        if not (self.salient or self.splits) and (self.metric, self.search) != (
            "hessian",
            "salience",
        ):
            raise ValueError("without salient columns and splits neither metric nor search is read")
        if self.reassign and not self.feedback:
            raise ValueError("feedback=false does not read reassign")
        if self.reassign and not self.splits:
            raise ValueError("splits=0 does not read reassign: a column has one class")
        return self

    @property
    @abstractmethod
    def scale_form(self) -> ScaleForm:
        """What is stored of the scales."""

    @property
    def classes_of_salient(self) -> bool:
        """Whether elements of salient columns have classes too."""
        return False

    @abstractmethod
    def fit_part(self, values: Tensor, mask: Tensor, order: int, moment: Tensor | None) -> PartFit:
        """Fit one part of a block.

        Args:
            values: ``f32[rows, width]``, the block as changed by those before it.
            mask: ``f32[rows, width]``, 1 for elements of the part, 0 for others.
            order: binary components of an element.
            moment: ``f32[width, width]``, second moment of its inputs; None unless
                ``reads_moment``.
        """

    @property
    def reads_moment(self) -> bool:
        """Whether ``fit_part`` is given the moment."""
        return False

    @abstractmethod
    def trial(self, values: Tensor, mask: Tensor, order: int) -> Tensor:
        """Error of a quick fit, which the searches compare: f64."""

    def needs(self) -> Kinds:
        """The moment too, where a fit is in its metric."""
        return (*super().needs(), Moment) if self.reads_moment else super().needs()

    def codec(self, node: Node, salient: int) -> PartitionedBinary:
        """The format of a layer that has so many salient columns."""
        return PartitionedBinary(
            rows=node.rows,
            columns=node.columns,
            form=self.scale_form,
            salient=salient if self.classes_of_salient else None,
        )

    def forecast_codec(self, unit: Forecast | Unit, node: Node) -> PartitionedBinary:
        """Known from the shape, but for classes in salient columns that are yet to be found."""
        return self.codec(node, 0)

    def forecast(self, unit: Forecast) -> None:
        """Say also how much such classes store at most."""
        super().forecast(unit)
        if self.classes_of_salient:
            most = (self.codec(node, self.most_salient(node)).nbytes for node in unit.layers())
            none = (self.codec(node, 0).nbytes for node in unit.layers())
            unit.orders_vary(0, sum(most) - sum(none))

    def most_salient(self, node: Node) -> int:
        """Salient columns of a layer at most: each block keeps one that is not."""
        return sum(min(self.salient, width - 1) for width in block_widths(node.columns))

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """The loop, and the searches: each trial reads the weight a number of times."""
        nbytes, work = self.loop_effort(unit, node, BLOCK)
        classes = 1 + self.classes_of_salient
        trials = min(self.salient, BLOCK) + classes * self.splits
        elements = node.rows * node.columns * TRIAL_READS * trials
        if self.reads_moment:
            nbytes += 4 * node.columns**2
        nbytes += BLOCK_COPIES * 4 * node.rows * BLOCK + 2 * self.codec(node, 0).working_bytes
        return nbytes, work + Work(elements=elements)

    def lower_blocks(self, unit: Unit, node: Node) -> tuple[PartitionedBinary, Tensors]:
        """Quantize a layer, and put its blocks side by side."""
        slices = block_slices(node.columns)
        moment: Tensor | None = None
        if self.reads_moment:
            moment = unit.get(unit.graph.require(node.name, Moment).tensor)

        def fit(index: int, block: Tensor, triangle: Tensor) -> tuple[PartitionGrid, Tensor]:
            part = slices[index]
            return self.fit_block(block, triangle, None if moment is None else moment[part, part])

        grids, dense = self.quantize(unit, node, slices, fit)
        written = [dense[:, part] for part in slices]
        working = PartitionedBinary.working(grids, written, self.scale_form)
        return self.codec(node, int(working["salient"].sum())), working

    def fit_block(
        self, block: Tensor, triangle: Tensor, moment: Tensor | None
    ) -> tuple[PartitionGrid, Tensor]:
        """Cut a block into parts and fit each: the levels, and the block as the fits have it."""
        parts, allowed = self.partition(block, triangle)
        grids, written = [], torch.zeros_like(block)
        has_mean = self.scale_form == "mean"
        for number, columns in enumerate(allowed):
            mask = (parts == number).to(block.dtype)
            order = SALIENT_ORDER if number >= SALIENT else CLASS_ORDER
            fitted = self.fit_part(block, mask, order, moment)
            if not has_mean:
                inactive = fitted.components.col_scale.masked_fill(~columns, 0)
                fitted = PartFit(fitted.mean, fitted.components._replace(col_scale=inactive))
            grid = BinaryPart(fitted, has_mean=has_mean)
            if not has_mean:
                grid = grid.with_columns(fitted.components.col_scale)
            grids.append(grid)
            written = torch.where(
                mask > 0, grid.write(grid.basis_of(fitted.components.signs)), written
            )
        return PartitionGrid(parts, grids, allowed, free=self.reassign), written

    def partition(self, block: Tensor, triangle: Tensor) -> tuple[Tensor, Tensor]:
        """Search the parts of a block, ``u8[rows, width]``, and those that each column allows."""
        salience = block if self.metric == "magnitude" else importance(block, triangle)
        fitted = block if self.search == "weights" else salience
        magnitude = salience.abs()
        columns = salient_columns(magnitude.sum(0), fitted, self.salient, self.trial)
        large = torch.zeros_like(block, dtype=torch.bool)
        zeros = int(columns.sum()) * len(block) if self.percentiles == "zeroed" else 0
        large[:, ~columns] = magnitude_split(
            magnitude[:, ~columns], fitted[:, ~columns], self.splits, CLASS_ORDER, self.trial, zeros
        )
        if self.classes_of_salient:
            large[:, columns] = magnitude_split(
                magnitude[:, columns], fitted[:, columns], self.splits, SALIENT_ORDER, self.trial
            )
        parts = column_partition(columns, large, salient_classes=self.classes_of_salient)
        allowed = torch.stack([~columns, ~columns, columns, columns])
        if not self.splits:
            allowed[SPARSE], allowed[SALIENT_SPARSE] = False, False
        return parts, allowed[: 4 if self.classes_of_salient else 3]


def shares(codec: PartitionedBinary, working: Tensors) -> tuple[float, float]:
    """The shares of salient columns, and of elements in a class of large magnitude."""
    salient = working["salient"] > 0
    sparse = int((working["planes"][:, 1, ~salient] > 0).sum())
    if "classes" in working:
        sparse += int(working["classes"].sum())
    return int(salient.sum()) / codec.columns, sparse / (codec.rows * codec.columns)
