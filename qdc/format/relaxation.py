"""A quantized layer as something that gradients can move: what ``polish`` optimises.

A codec that can be polished gives a ``Relaxation`` of its working tensors; the pass knows nothing
of signs or scales.
"""

from abc import ABC, abstractmethod
from enum import Enum

from torch import Tensor, nn


class TrainableKind(Enum):
    """What a trainable tensor is, which decides its step size."""

    CODE = "code"
    """Latent weights: their rounding is the code."""
    SCALE = "scale"


class Relaxation(nn.Module, ABC):
    """Trainable tensors behind one layer."""

    @abstractmethod
    def dense(self) -> Tensor:
        """``f32[rows, columns]`` with gradients: the levels that would be stored now."""

    @abstractmethod
    def trainable(self) -> list[tuple[TrainableKind, nn.Parameter, float]]:
        """Each trainable tensor, its kind, and the size that a step is measured against."""

    @abstractmethod
    def working(self) -> dict[str, Tensor]:
        """The working tensors of the codec, scales rounded. Raises ``OverflowError``."""
