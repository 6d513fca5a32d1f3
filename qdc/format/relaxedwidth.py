"""Codes of variable width that gradients can move: latent weights and scales, zero points fixed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdc.format.relaxation import Relaxation, TrainableKind
from qdc.format.relaxeduniform import MARGIN, START


class RelaxedWidth(Relaxation):
    """All groups of a layer side by side, ``[rows, columns]``; integer zero points stay fixed."""

    def __init__(
        self,
        working: Mapping[str, Tensor],
        weight: Tensor,
        group: int,
        parts: Tensor,
        top: Tensor,
    ) -> None:
        """Start from a lowered layer.

        Args:
            working: ``codes`` u8[rows, columns], ``scale`` f16[rows, G], ``zero`` u8[rows, G].
            weight: f32[rows, columns], the original weight: latent weights start near it.
            group: columns of a group.
            parts: i64[G], parts of a step that a zero point counts.
            top: f32[G], the highest code of each group.
        """
        super().__init__()
        self.columns = weight.shape[1]
        self.group = min(group, self.columns)  # a group wider than the layer is not written out
        self.scale = nn.Parameter(working["scale"].float())
        self.stored_zero = working["zero"]
        self.zero = self._spread(self.stored_zero.float() / parts)
        self.top = self._spread(top[None])
        self.latent = nn.Parameter(self._start(working["codes"].float(), weight))

    def _spread(self, grids: Tensor) -> Tensor:
        """One number a grid to all columns."""
        return grids.repeat_interleave(self.group, 1)[:, : self.columns]

    def _start(self, codes: Tensor, weight: Tensor) -> Tensor:
        """Half way from each level to the weight, or to the edge of the cell if that is nearer.

        So the first steps do not flip the codes of weights at an edge.
        """
        step = self._spread(self.scale.detach())
        level = (codes - self.zero) * step
        lowest = torch.where(codes > 0, level - MARGIN * step, -torch.inf)
        highest = torch.where(codes < self.top, level + MARGIN * step, torch.inf)
        return torch.lerp(level, weight.clamp(lowest, highest), START)

    def dense(self) -> Tensor:
        """Round the latent weights to the nearest levels."""
        result: Tensor = RoundToFields.apply(  # type: ignore[no-untyped-call]
            self.latent, self._spread(self.scale), self.zero, self.top
        )
        return result

    def trainable(self) -> list[tuple[TrainableKind, nn.Parameter, float]]:
        """Latent weights by their deviation, scales by their mean size."""
        return [
            (TrainableKind.CODE, self.latent, float(self.latent.detach().std())),
            (TrainableKind.SCALE, self.scale, float(self.scale.detach().abs().mean())),
        ]

    @torch.no_grad()
    def working(self) -> dict[str, Tensor]:
        """Scales in fp16, not below 0; codes the nearest on those grids; the same zero points."""
        scale = self.scale.clamp(min=0).half()
        if not bool(scale.isfinite().all()):
            raise OverflowError("a scale is not finite in fp16")
        codes = _codes(self.latent, self._spread(scale.float()), self.zero, self.top)
        return {"codes": codes.to(torch.uint8), "scale": scale, "zero": self.stored_zero}


def _codes(latent: Tensor, scale: Tensor, zero: Tensor, top: Tensor) -> Tensor:
    """Nearest codes, f32[rows, columns]; 0 where a scale is."""
    live = scale > 0
    steps = latent / torch.where(live, scale, 1.0) + zero
    return torch.minimum(steps.round().clamp(min=0), top) * live


class RoundToFields(torch.autograd.Function):
    """``(latent, scale, zero, all f32[n, m], top f32[1, m]) -> f32[n, m]``."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, zero: Tensor, top: Tensor) -> Tensor:
        """Write out the nearest levels; a scale below 0 counts as 0."""
        steps = scale.clamp(min=0)
        places = _codes(latent, steps, zero, top) - zero
        ctx.save_for_backward(places)
        return places * steps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Straight through to the latent weight; exact for the scale, codes fixed."""
        (gradient,) = gradients
        (places,) = ctx.saved_tensors
        return gradient, gradient * places, None, None
