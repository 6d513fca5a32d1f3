"""Rotated codes whose scale gradients can move; the codes stay."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qdc.format.relaxation import Relaxation, TrainableKind


class RelaxedScale(Relaxation):
    """One scale before a matrix that is written out once.

    The norms around the layer and its bias move with it, which is what the publication tunes after
    rounding beside its sign vectors; those are seeds here.
    """

    def __init__(self, working: Mapping[str, Tensor], unscaled: Tensor) -> None:
        """Start from a lowered layer.

        Args:
            working: as the codec has them.
            unscaled: f32[rows, columns], what the codes write out at scale 1.
        """
        super().__init__()
        self.kept = dict(working)
        self.unscaled = unscaled
        self.scale = nn.Parameter(working["scale"].float())

    def dense(self) -> Tensor:
        """The matrix times the scale."""
        return self.unscaled * self.scale

    def trainable(self) -> list[tuple[TrainableKind, nn.Parameter, float]]:
        """The scale, by its size."""
        return [(TrainableKind.SCALE, self.scale, float(self.scale.detach().abs()))]

    @torch.no_grad()
    def working(self) -> dict[str, Tensor]:
        """The codes as they were, and the scale in fp16."""
        scale = self.scale.half()
        if not bool(scale.isfinite().all()):
            raise OverflowError("the scale is not finite in fp16")
        return {**self.kept, "scale": scale}
