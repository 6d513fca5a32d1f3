"""Calibrations whose tokens may count differently: the option, and what each token counts."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.ir.graph import Node
from qdc.ir.guidance import Guidance
from qdc.ir.tensors import digest
from qdc.passkit.experts import ExpertOptions
from qdc.pipeline.passbase import Kinds
from qdc.streaming.stream import Stream
from qdc.streaming.unit import Unit


class WeighedOptions(ExpertOptions):
    """A pass that takes moments over tokens, and can weigh them."""

    token_weights: Literal["equal", "guided"] = Field(
        default="equal",
        description="guided: a token counts by how much the predictions hang on it, as guide says",
    )

    def needs(self) -> Kinds:
        """The weights of guide, where those are asked for."""
        return (*super().needs(), *((Guidance,) if self.token_weights == "guided" else ()))

    def counted(self, unit: Unit, stream: Stream, layers: Sequence[Node]) -> Tensor | None:
        """What each token counts in the moments of a stage, ``f32[samples, length]``.

        Returns:
            None where all count 1.

        Raises:
            InvalidCalibration: guide has seen other samples.
        """
        given = None if self.masked_weight == 1 else self.weigh(stream.masked)
        if self.token_weights == "equal":
            return given
        note = unit.graph.require(layers[0].name, Guidance)
        if note.states != digest(stream.tokens):
            raise InvalidCalibration(
                f"guide has weighed other samples than {self.name} draws",
                where=[f"%{node.name}" for node in layers],
                help=f"give guide and {self.name} the same samples, length, seed and geometry",
            )
        weights = unit.get(note.tensor).cpu()
        return weights if given is None else weights * given
