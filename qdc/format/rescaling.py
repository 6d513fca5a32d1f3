"""A quantized layer as a function of its continuous numbers, codes fixed: for ``distill``.

A ``Relaxation`` lets codes move too and holds a latent weight for each; here nothing of the size of
the layer is trained.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Dense = Callable[[Tensors], Tensor]


class Rescaling(ABC):
    """How the weight of a layer hangs on its scales."""

    @abstractmethod
    def scales(self, working: Tensors) -> dict[str, Tensor]:
        """Copies of the continuous numbers by suffix, f32."""

    @abstractmethod
    def fixed(self, working: Tensors) -> dict[str, Tensor]:
        """What ``dense`` reads beside them; whoever calls may hold floats of it in fewer bits."""

    @abstractmethod
    def dense(self, fixed: Tensors, scales: Tensors) -> Tensor:
        """``f32[rows, columns]``; gradients reach the scales."""

    @abstractmethod
    def working(self, working: Tensors, scales: Tensors) -> dict[str, Tensor]:
        """The working tensors with these scales, rounded. Raises ``OverflowError``."""


class NamedScales(Rescaling):
    """Working tensors of a codec whose ``dense`` takes them in fp32 and differentiates."""

    def __init__(
        self, dense: Dense, names: tuple[str, ...], positive: tuple[str, ...] = ()
    ) -> None:
        """Take a format.

        Args:
            dense: of the codec.
            names: suffixes of the continuous tensors; a layer may lack some.
            positive: those of them that are never below 0.
        """
        self._dense, self._names, self._positive = dense, names, positive

    def scales(self, working: Tensors) -> dict[str, Tensor]:
        """The named tensors."""
        return {s: working[s].to(torch.float32, copy=True) for s in self._names if s in working}

    def fixed(self, working: Tensors) -> dict[str, Tensor]:
        """The others, which are codes."""
        return {suffix: t for suffix, t in working.items() if suffix not in self._names}

    def dense(self, fixed: Tensors, scales: Tensors) -> Tensor:
        """As the codec says."""
        return self._dense({**fixed, **self.bounded(scales)})

    def working(self, working: Tensors, scales: Tensors) -> dict[str, Tensor]:
        """Scales in fp16."""
        rounded = {s: self.rounded(s, t) for s, t in self.bounded(scales).items()}
        for suffix, tensor in rounded.items():
            if not bool(tensor.isfinite().all()):
                raise OverflowError(f"{suffix} is not finite in fp16")
        return {**working, **rounded}

    def bounded(self, scales: Tensors) -> dict[str, Tensor]:
        """Those that may not be below 0 are not."""
        return {s: t.clamp(min=0) if s in self._positive else t for s, t in scales.items()}

    def rounded(self, suffix: str, numbers: Tensor) -> Tensor:
        """Numbers of a suffix as they are stored."""
        return numbers.half()


class OneScale(Rescaling):
    """A matrix that is dear to write out, times one scale: it is written out once."""

    def __init__(self, dense: Dense) -> None:
        """``dense`` is the codec's; ``scale`` is its suffix."""
        self._dense = dense

    def scales(self, working: Tensors) -> dict[str, Tensor]:
        """The scale."""
        return {"scale": working["scale"].to(torch.float32, copy=True)}

    def fixed(self, working: Tensors) -> dict[str, Tensor]:
        """What the codes write out at scale 1."""
        return {"unscaled": self._dense({**working, "scale": torch.ones_like(working["scale"])})}

    def dense(self, fixed: Tensors, scales: Tensors) -> Tensor:
        """The matrix times the scale."""
        return fixed["unscaled"] * scales["scale"]

    def working(self, working: Tensors, scales: Tensors) -> dict[str, Tensor]:
        """The scale in fp16."""
        scale = scales["scale"].half()
        if not bool(scale.isfinite().all()):
            raise OverflowError("the scale is not finite in fp16")
        return {**working, "scale": scale}
