"""What is to be known of a compiled model to say what running it holds, and what a runtime says."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from qdc.format.codec import Codec
    from qdc.ir.types import ValueType


class Layer(NamedTuple):
    """One tensor of the model, or a layer that is stored by a codec."""

    path: str
    """Of the layer, or the full name of a tensor that is stored plainly."""
    codec: "Codec | None"
    plain: "ValueType | None"
    """How the tensor is stored, where there is no codec."""
    embedding: bool = False
    """Whether rows are looked up in it."""
    multiplied: bool = True
    """Whether it is multiplied with, as an embedding is that is tied to the output head."""
    integer: bool = False
    """Whether its weight is held as whole numbers of a byte each, and multiplied as such."""
    rotated: bool = False
    """Whether what it reads is rotated, by signs that are held."""


@dataclass(frozen=True)
class Running:
    """A compiled model with the forward that it will run."""

    layers: tuple[Layer, ...]
    """In the order of the model."""
    tokens: int
    """Rows of activations: the batch times its length."""
    values: int
    """Bytes of fp32 activations at the widest moment of the forward, logits included."""

    def quantized(self) -> Iterator[tuple[Layer, "Codec"]]:
        """The layers that have a codec."""
        for layer in self.layers:
            if layer.codec is not None:
                yield layer, layer.codec


class Resident(NamedTuple):
    """What a runtime holds in the host's memory, beside the process as it is without a model."""

    parts: Mapping[str, int]
    """Bytes while a forward runs, by what they are."""
    loading: int
    """Most bytes while the model is loaded."""
