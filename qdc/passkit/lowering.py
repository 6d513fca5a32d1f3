"""What every quantizer shares: a pass that lowers one layer after the other.

A quantizer subclasses ``Lowering``, implements ``lower`` for one layer, and brings its annotation
and codec in the same file. Reading weights, measuring the output error, keeping tensors, remarks,
the report of weights that no fp16 scale holds, and the sharing of layers between processes are done
here, once.
"""

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from qdc.errors import SHOWN, InvalidCheckpoint
from qdc.format.codec import Codec, Lowered, Tensors
from qdc.ir.annotations import Factor, Moment
from qdc.ir.cross import CrossMoment
from qdc.ir.graph import Node
from qdc.ir.keys import table_key
from qdc.numerics.asymmetry import drifted_target
from qdc.numerics.error import block_errors
from qdc.numerics.underflow import may_vanish, vanished
from qdc.pipeline.passbase import Pass
from qdc.streaming.forecast import Forecast
from qdc.streaming.unit import Unit
from qdc.streaming.work import Work

RANGE = "bring the weights of the checkpoint between 6e-5 and 65504, by a factor to their layer"
UNDERFLOW = "a scale is too small, so that weights decode to zero"
EXACT = 8
"""Bytes of an fp64 number."""


class Lowering(Pass, ABC):
    """A pass that turns weights into the working form of a codec."""

    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "layers"
    reads_all: ClassVar[bool] = False

    @abstractmethod
    def lower(self, unit: Unit, node: Node) -> tuple[Lowered, Tensors]:
        """Quantize one layer.

        Returns:
            The annotation with its codec and statistics, and the working tensors by suffix.

        Raises:
            OverflowError: a scale does not fit its stored dtype. A working tensor that is not
                finite counts as one, and a block that decodes to zero: a quantizer need not look.
        """

    def forecast_codec(self, unit: Forecast, node: Node) -> Codec | None:
        """The codec that ``lower`` will give this layer, for ``qdc plan``; None if unknown."""
        return None

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """Bytes that ``lower`` takes for a moment beside what is held, and its arithmetic.

        As it is: the weight and two more of its size, each of its numbers read a few times.
        """
        weight = unit.weight(node)
        return 3 * weight, Work(elements=weight)

    def forecast(self, unit: Forecast) -> None:
        """Lower every layer in thought, and measure its error where a moment is at hand."""
        for node in unit.layers():
            unit.work(*self.effort(unit, node))
            codec = self.forecast_codec(unit, node)
            if codec is None:
                unit.stored_unknown(node)
            else:
                unit.lower(node, codec)
            moment = unit.graph.get(node.name, Moment)
            if moment is not None and unit.holds(moment.tensor):
                unit.work(*error_effort(node))

    def run(self, unit: Unit) -> None:
        """Lower every layer of the unit; report all layers that overflow together."""
        failed = unit.share(unit.layers(), partial(self._lower_all, unit))
        if failed:
            raise InvalidCheckpoint(
                f"weights do not fit fp16 scales: {next(iter(failed.values()))}",
                where=[f"%{name}" for name in failed],
                help=RANGE,
            )

    def _lower_all(self, unit: Unit, nodes: tuple[Node, ...]) -> dict[str, str]:
        """Lower these layers; returns those that overflow, and why."""
        failed: dict[str, str] = {}
        for node in nodes:
            try:
                note, working = self.lower(unit, node)
                _require_finite(working)
                _require_weights(unit.weight(node), note, working)
            except OverflowError as error:
                failed[node.name] = str(error)
                continue
            refs = tuple(unit.put(table_key(node.name, s), tensor) for s, tensor in working.items())
            kept = {"tensors": refs, "suffixes": tuple(working)}
            measured = output_error(unit, node, note, working)
            unit.annotate(node, note.model_copy(update={**kept, **measured}))
            unit.remark("passed", node, error=measured["error"])
        return failed


def _require_finite(working: Tensors) -> None:
    """Refuse working tensors that no artifact may hold. Raises ``OverflowError``."""
    for suffix, tensor in working.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise OverflowError(f"{suffix} is not finite in {kind}")


def _require_weights(weight: Tensor, note: Lowered, working: Tensors) -> None:
    """Refuse working tensors that have lost what they stand for. Raises ``OverflowError``."""
    if may_vanish(weight):
        lost = vanished(weight, note.codec.dense(working), note.codec.column_blocks)
        if lost:
            named = ", ".join(map(str, lost[:SHOWN])) + (" ..." if len(lost) > SHOWN else "")
            raise OverflowError(f"{UNDERFLOW} (blocks {named})")


def output_error(unit: Unit, node: Node, note: Lowered, working: Tensors) -> dict[str, Any]:
    """Relative output error on the calibration states: the annotation's error and block errors.

    None without a moment at hand, and where a layer without output makes the share undefined.
    """
    found = unit.graph.get(node.name, Moment)
    moment = None if found is None else unit.find(found.tensor)
    if moment is None:
        return {"error": None}
    dense = note.codec.dense(working)
    error = block_errors(unit.weight(node), dense, moment, note.codec.column_blocks)
    if not math.isfinite(error.total):
        return {"error": None}
    return {"error": error.total, "block_errors": error.blocks}


def error_effort(node: Node) -> tuple[int, Work]:
    """What ``output_error`` takes, at most: the moment and four copies of the weight in fp64."""
    weights = node.rows * node.columns
    nbytes = EXACT * (node.columns**2 + 4 * weights) + 2 * 4 * weights
    return nbytes, Work(exact=4 * weights * node.columns)


def target(unit: Unit, node: Node, upper: Tensor, share: float = 0) -> Tensor:
    """What a layer should hold before it is rounded, ``f32[rows, columns]``; dead inputs are 0.

    Args:
        unit: of the layer, which carries a factor, and with a share a cross moment.
        node: the layer.
        upper: the factor, ``f32[columns, columns]``.
        share: of the drift of its inputs, and of the residual stream, that it takes back.
    """
    weight = unit.weight(node)
    if share:
        drift = unit.graph.require(node.name, CrossMoment)
        residual = None if drift.residual is None else unit.get(drift.residual)
        # Before dead inputs are cleared: what is dead now may have been alive in the original.
        weight = drifted_target(weight, unit.get(drift.tensor), upper, share, residual)
    dead = unit.graph.require(node.name, Factor).dead
    return weight.index_fill(1, torch.tensor(dead, dtype=torch.int64, device=upper.device), 0)
