"""Calibrations that may weigh tokens by what ``guide`` has found, for each stage by itself."""

from collections.abc import Sequence
from typing import ClassVar

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
    """A pass that takes moments over tokens, with ``token-weights=guided`` too."""

    reads_guidance: ClassVar[bool] = True

    def needs(self) -> Kinds:
        """The weights of guide, where those are asked for."""
        return (*super().needs(), *((Guidance,) if self.token_weights == "guided" else ()))

    def counted(self, unit: Unit, stream: Stream, layers: Sequence[Node]) -> Tensor | None:
        """What each token counts in the moments of a stage, ``f32[samples, length]``.

        Returns:
            None where that is the same for all stages, as the stream says.

        Raises:
            InvalidCalibration: guide has seen other samples.
        """
        if self.token_weights != "guided":
            return None
        note = unit.graph.require(layers[0].name, Guidance)
        if note.states != digest(stream.tokens):
            raise InvalidCalibration(
                f"guide has weighed other samples than {self.name} draws",
                where=[f"%{node.name}" for node in layers],
                help=f"give guide and {self.name} the same samples, length, seed and geometry",
            )
        weights, others = unit.get(note.tensor).cpu(), stream.token_weights
        return weights if others is None else weights * others
