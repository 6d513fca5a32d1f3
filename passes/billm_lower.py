"""Binarise each block by parts: salient columns twice, two magnitude classes once.

Source: BiLLM (arXiv 2402.04291) and its code's commands: the columns of largest salience w^2/U_jj^2
are binarised twice, about a mean and then what is left; the others are split at a percentile of
their salience into two classes, with a mean and a scale of their own in each row. Quirks of the
code, each an option: ``search=salience`` measures the error of the trials on the salience matrix in
place of the weights, and ``percentiles=zeroed`` leaves zeros in the places of salient columns.
What it does not count is stored and counted here: the class of each element is a second bit, so a
weight has two bits in all. Ours: ``reassign``, which chooses this second bit column by column as
well, and what ``feedback`` brings.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
    after        @billm   4 blocks   row means   output error 9.1e-02   salient 6.2%   sparse 21%
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from qdc.format.partitionedbinary import ScaleForm
from qdc.numerics.partbinary import PartFit, residual, residual_error
from qdc.passkit import Kinds, Node, Preset, Tensors, Unit
from qdc.passkit.partition_lowering import PartitionedLowered, PartitionLowering, shares


class Billm(PartitionedLowered):
    """A layer binarised by parts, about row means."""

    tag: ClassVar[str] = "billm"


class BillmLower(PartitionLowering):
    """Binarise each block by parts: salient columns twice, two magnitude classes once."""

    name: ClassVar[str] = "billm-lower"
    provides: ClassVar[Kinds] = (Billm,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "billm": Preset(
            "stages(calibrate-mcs,sensitivity,billm-lower{compensation=diag feedback=false}),pack",
            1.08,
            "arXiv 2402.04291",
        ),
        "billm-shared": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},"
            "billm-lower{asymmetry=1 search=weights percentiles=masked reassign=true}),pack",
            1.08,
            "arXiv 2402.04291",
        ),
    }

    @property
    def scale_form(self) -> ScaleForm:
        """A mean and scales of each row and part."""
        return "mean"

    def trial(self, values: Tensor, mask: Tensor, order: int) -> Tensor:
        """Error of the residual binarisation."""
        return residual_error(values, mask, order)

    def fit_part(self, values: Tensor, mask: Tensor, order: int, moment: Tensor | None) -> PartFit:
        """Binarise about the mean, then what is left; no iteration."""
        return residual(values, mask, order)[0]

    def lower(self, unit: Unit, node: Node) -> tuple[Billm, Tensors]:
        """Quantize the blocks of a layer left to right."""
        codec, working = self.lower_blocks(unit, node)
        salient, sparse = shares(codec, working)
        return Billm(codec=codec, salient=salient, sparse=sparse), working
