"""What passes are made of: the one import of whoever writes a pass, a lowering or an allocation.

    from qdc.passkit import Annotation, Field, Pass, Unit

Names are grouped below as a writer meets them. What only Quant-dLLM's own passes need, say the fit
of binary components, stays in ``qdc.numerics``; who draws samples or probes the model in a way of
its own finds the parts in the modules of this package.
"""

from pydantic import Field, model_validator
from torch import Tensor

from qdc.errors import (
    InvalidArtifact,
    InvalidCalibration,
    InvalidCheckpoint,
    InvalidGraph,
    InvalidPipeline,
    MissingAnnotation,
    NotPositiveDefinite,
    OrderOutOfRange,
    QdcError,
    UnknownName,
    UnsupportedModel,
    nearest,
)
from qdc.format.codec import Codec, Lowered, Tensors
from qdc.format.relaxation import Relaxation, TrainableKind
from qdc.format.uniformgrid import UniformGrid
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Factor, Kept, Moment, Orders, Packed, Salience
from qdc.ir.costs import Costs, LossSensitivity
from qdc.ir.cross import CrossMoment
from qdc.ir.graph import LayerGraph, Node, Region, Stage
from qdc.ir.keys import file_key, table_key
from qdc.ir.tuned import Tuned
from qdc.ir.types import TensorRef, ValueType
from qdc.numerics.affinegrid import AffineGrid
from qdc.numerics.allocation import abmp_orders
from qdc.numerics.binarygrid import BinaryGrid
from qdc.numerics.bitplanes import pack_signs, unpack_signs
from qdc.numerics.blocks import BLOCK, block_slices, block_widths, even_width
from qdc.numerics.columns import Metric, block_metric, quantize_block
from qdc.numerics.error import relative_output_error
from qdc.numerics.factor import Factorization, FactorizationFailed, factor_bytes, factorize
from qdc.numerics.feedback import (
    Compensation,
    quantize_blocks,
    quantize_on_grids,
    residual_cost,
)
from qdc.numerics.fields import pack_codes, unpack_codes
from qdc.numerics.grids import Grid
from qdc.numerics.moment import MomentAccumulator
from qdc.numerics.orders import HIGHEST_ORDER, LOWEST_ORDER
from qdc.numerics.trits import pack_trits, unpack_trits
from qdc.numerics.uniform import (
    Search,
    Uniform,
    Zero,
    dense_uniform,
    fit_grid,
    fit_uniform,
    round_to_grid,
)
from qdc.passkit.block_lowering import BlockLowering, CompensatedLowering, Problem
from qdc.passkit.calibration import CalibrationOptions
from qdc.passkit.experts import ExpertOptions
from qdc.passkit.lowering import Lowering, error_effort, output_error, target
from qdc.passkit.source import Source
from qdc.passkit.states import States
from qdc.passkit.uniform_lowering import UniformLowering
from qdc.passkit.vocabulary_lowering import LoweredVocabulary, VocabularyLowering
from qdc.pipeline.passbase import Kinds, Pass
from qdc.pipeline.preset import Preset
from qdc.streaming.batches import Batches
from qdc.streaming.forecast import Forecast
from qdc.streaming.stream import Stream
from qdc.streaming.unit import Unit
from qdc.streaming.work import Work

# ruff: noqa: RUF022 - the groups are the order.
__all__ = [
    # A pass: its options are fields, and it runs on units. A forecast is the same for ``qdc plan``.
    "Pass",
    "Field",
    "model_validator",
    "Kinds",
    "Preset",
    "Unit",
    "Forecast",
    "Work",
    # Passes that calibrate, and what they get.
    "CalibrationOptions",
    "ExpertOptions",
    "Source",
    "States",
    "Batches",
    "Stream",
    # What a unit is about.
    "LayerGraph",
    "Node",
    "Region",
    "Stage",
    "ValueType",
    "TensorRef",
    "file_key",
    "table_key",
    # Facts that passes hand on.
    "Annotation",
    "CrossMoment",
    "Costs",
    "Factor",
    "Kept",
    "LossSensitivity",
    "Moment",
    "Orders",
    "Packed",
    "Salience",
    "Tuned",
    "LOWEST_ORDER",
    "HIGHEST_ORDER",
    # A quantizer: its pass, its format, its annotation.
    "Lowering",
    "BlockLowering",
    "CompensatedLowering",
    "Problem",
    "UniformLowering",
    "VocabularyLowering",
    "LoweredVocabulary",
    "target",
    "output_error",
    "error_effort",
    "Codec",
    "UniformGrid",
    "Lowered",
    "Tensor",
    "Tensors",
    "Relaxation",
    "TrainableKind",
    # Blocks of columns, and error feedback over any grid of levels.
    "BLOCK",
    "block_slices",
    "block_widths",
    "even_width",
    "Compensation",
    "quantize_on_grids",
    "quantize_blocks",
    "quantize_block",
    "block_metric",
    "Metric",
    "Grid",
    "AffineGrid",
    "BinaryGrid",
    # Uniform grids, and orders from scores.
    "Uniform",
    "Search",
    "Zero",
    "fit_uniform",
    "fit_grid",
    "round_to_grid",
    "dense_uniform",
    "abmp_orders",
    # Second moments and errors.
    "MomentAccumulator",
    "Factorization",
    "factorize",
    "factor_bytes",
    "FactorizationFailed",
    "relative_output_error",
    "residual_cost",
    # Codes, signs and ternary codes to bytes and back.
    "pack_codes",
    "unpack_codes",
    "pack_signs",
    "unpack_signs",
    "pack_trits",
    "unpack_trits",
    # Mistakes of the user, each with a code of its own; anything else is a bug of the pass.
    "QdcError",
    "InvalidArtifact",
    "InvalidCalibration",
    "InvalidCheckpoint",
    "InvalidGraph",
    "InvalidPipeline",
    "MissingAnnotation",
    "NotPositiveDefinite",
    "OrderOutOfRange",
    "UnknownName",
    "UnsupportedModel",
    "nearest",
]
