"""Binarise each block by parts, refining means, scales and signs in turn.

Source: ARB-LLM (arXiv 2410.03129). The parts are BiLLM's: salient columns with two bits, two
magnitude classes of the others with one. ``scales=mean`` is ARB: a mean and scales of each row.
``activation=true`` is ARB-X: then as many sweeps in the metric of the block's second moment, signs
fixed. ``scales=column`` is ARB-RC: scales of rows and columns, no mean. ``salient-classes=true`` is
its column-group bitmap: salient columns are split into two classes as well. The searches try the
start of the fit, without iterations. What is stored, and ``reassign``, are as for ``billm-lower``.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
    after        @arb   4 blocks   column scales   output error 7.9e-02   salient 9.6%   sparse 24%
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from qdc.format.partitionedbinary import ScaleForm
from qdc.numerics.partbinary import (
    PartFit,
    alternate,
    metric_refit,
    residual,
    residual_error,
    row_column,
    row_column_error,
)
from qdc.passkit import Field, Kinds, Node, Preset, Tensors, Unit, model_validator
from qdc.passkit.partition_lowering import PartitionedLowered, PartitionLowering, shares

SOURCE, NOMINAL = "arXiv 2410.03129", 1.09


def _published(options: str) -> Preset:
    """A preset as published: no feedback inside blocks, errors moved on by the diagonal."""
    step = f"arb-lower{{compensation=diag feedback=false{options}}}"
    return Preset(f"stages(calibrate-mcs,sensitivity,{step}),pack", NOMINAL, SOURCE)


class Arb(PartitionedLowered):
    """A layer binarised by parts, with scales that were refined in turn."""

    tag: ClassVar[str] = "arb"


class ArbLower(PartitionLowering):
    """Binarise each block by parts, refining means, scales and signs in turn."""

    name: ClassVar[str] = "arb-lower"
    provides: ClassVar[Kinds] = (Arb,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "arb": _published(" scales=mean"),
        "arb-x": _published(" scales=mean activation=true"),
        "arb-x-cgb": _published(" scales=mean activation=true salient-classes=true"),
        "arb-rc": _published(""),
        "arb-rc-cgb": _published(" salient-classes=true"),
        "arb-rc-shared": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},"
            "arb-lower{asymmetry=1 search=weights percentiles=masked reassign=true}),pack",
            NOMINAL,
            SOURCE,
        ),
    }

    salient: int = Field(
        default=50, ge=0, le=1 << 16, description="most salient columns of a block; 0 for none"
    )
    scales: ScaleForm = Field(
        default="column", description="row means and scales (ARB), or row and column scales (RC)"
    )
    iterations: int = Field(default=15, ge=0, le=1000, description="sweeps of the refinement")
    activation: bool = Field(
        default=False, description="as many sweeps in the metric of the second moment (ARB-X)"
    )
    salient_classes: bool = Field(
        default=False, description="split salient columns into two classes as well (CGB)"
    )

    @model_validator(mode="after")
    def _arb_ignores_nothing(self) -> "ArbLower":
        if self.activation and self.scales != "mean":
            raise ValueError("activation=true refits row means: it needs scales=mean")
        if self.activation and not self.iterations:
            raise ValueError("activation=true sweeps as often as iterations says, and that is 0")
        if self.salient_classes and not (self.salient and self.splits):
            raise ValueError("salient-classes=true needs salient columns and splits")
        return self

    @property
    def scale_form(self) -> ScaleForm:
        """As the option says."""
        return self.scales

    @property
    def classes_of_salient(self) -> bool:
        """As the option says."""
        return self.salient_classes

    @property
    def reads_moment(self) -> bool:
        """ARB-X does."""
        return self.activation

    def trial(self, values: Tensor, mask: Tensor, order: int) -> Tensor:
        """Error of the start that the refinement has."""
        error = residual_error if self.scales == "mean" else row_column_error
        return error(values, mask, order)

    def fit_part(self, values: Tensor, mask: Tensor, order: int, moment: Tensor | None) -> PartFit:
        """Start in closed form, then refine."""
        if self.scales == "column":
            return row_column(values, mask, order, self.iterations)
        start, _ = residual(values, mask, order)
        fit = alternate(values, mask, start, self.iterations)
        if moment is None:
            return fit
        return metric_refit(values, mask, fit, moment, self.iterations)

    def lower(self, unit: Unit, node: Node) -> tuple[Arb, Tensors]:
        """Quantize the blocks of a layer left to right."""
        codec, working = self.lower_blocks(unit, node)
        salient, sparse = shares(codec, working)
        return Arb(codec=codec, salient=salient, sparse=sparse), working
