"""The tensors of a model, some of them of quantized layers, as whoever runs it asks for them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from qdc.format.codec import Codec
from qdc.ir.activations import LayerActivations
from qdc.ir.keys import layer_of
from qdc.numerics.hadamard import RandomHadamard


@dataclass(frozen=True)
class Weights(ABC):
    """The tensors of a model, some of them of quantized layers; nothing of them is held."""

    codecs: Mapping[str, Codec]
    """Of each quantized layer, by full path."""
    stages: tuple[tuple[str, ...], ...] = ()
    """Paths that the artifact claims to read one value. A hint: it is not to be trusted."""
    traceable: bool = True
    """Whether the model is one of qdc's own, whose parts plain ``torch.fx`` traces."""

    activations: Mapping[str, LayerActivations] = field(default_factory=dict, kw_only=True)
    """What quantized linears do with what they read and give, by full path."""

    @abstractmethod
    def plain(self, name: str) -> Tensor:
        """A tensor that is no part of a quantized layer, as it is stored."""

    @abstractmethod
    def stored(self, layer: str) -> dict[str, Tensor]:
        """The stored tensors of a quantized layer."""

    def dense(self, name: str) -> Tensor:
        """A parameter of the model: as it is stored, or decoded to fp32."""
        return self._decoded(name)

    def _decoded(self, name: str) -> Tensor:
        layer = layer_of(name)
        codec = self.codecs.get(layer)
        if codec is None:
            return self.plain(name)
        return codec.dense(codec.unpack(self.stored(layer)))

    def rotation(self, layer: str) -> int | None:
        """Seed of the rotation of a layer's inputs, where nothing else is done with them."""
        does = self.activations.get(layer)
        return does.rotation if does is not None and does.only_rotates else None

    @property
    def rotated(self) -> frozenset[str]:
        """Paths of the layers with such a rotation."""
        return frozenset(path for path in self.activations if self.rotation(path) is not None)

    def unrotated(self, name: str) -> Tensor:
        """A parameter as ``dense`` gives it, the rotation of its layer's inputs multiplied out.

        With ``W Q^T``, in fp32, a linear reads its inputs as they are.
        """
        found, seed = self._decoded(name), self.rotation(layer_of(name))
        if seed is None:
            return found
        return RandomHadamard.of(found.shape[1], seed, found.device).inverse(found.float())
