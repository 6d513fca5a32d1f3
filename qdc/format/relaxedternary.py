"""Ternary levels that gradients can move: latent weights behind the codes, scales and shifts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from qdc.format.relaxation import Relaxation, TrainableKind
from qdc.numerics.ternary import nearest_codes

MARGIN = 0.49
"""How far from its level, in scales, a weight counts at most where another level follows."""
START = 0.5
"""Share of the way from the level to the weight at which a latent weight starts."""


class RelaxedTernary(Relaxation):
    """All groups of a layer side by side, ``[rows, G, group]``, in the stored order of columns."""

    def __init__(self, working: Mapping[str, Tensor], weight: Tensor, group: int) -> None:
        """Start from a lowered layer.

        Args:
            working: ``codes``, ``scale``, ``shift``, and where there is one ``permutation``.
            weight: f32[rows, columns], the original weight: latent weights start near it.
            group: columns that share a scale.
        """
        super().__init__()
        self.columns = weight.shape[1]
        self.group = min(group, self.columns)  # a group wider than the layer is not padded to it
        self.permutation = working.get("permutation")
        if self.permutation is not None:
            weight = weight[:, self.permutation.long()]
        self.scale = nn.Parameter(working["scale"].float())
        self.shift = nn.Parameter(working["shift"].float())
        self.latent = nn.Parameter(self._start(self._grouped(working["codes"].float()), weight))

    def _grouped(self, values: Tensor) -> Tensor:
        """``[rows, columns]`` to ``[rows, G, group]``, the last group padded with zeros."""
        padding = self.scale.shape[1] * self.group - self.columns
        return pad(values, (0, padding)).reshape(*self.scale.shape, self.group)

    def _start(self, codes: Tensor, weight: Tensor) -> Tensor:
        """Half way from each level to the weight, or to the edge of the cell if that is nearer.

        So the first steps do not flip the codes of weights at an edge.
        """
        scale, shift = (tensor.detach()[..., None] for tensor in (self.scale, self.shift))
        level = codes * scale + shift
        lowest = torch.where(codes > -1, level - MARGIN * scale, -torch.inf)
        highest = torch.where(codes < 1, level + MARGIN * scale, torch.inf)
        return torch.lerp(level, self._grouped(weight).clamp(lowest, highest), START)

    def dense(self) -> Tensor:
        """Round the latent weights to the nearest levels, each column where it belongs."""
        levels: Tensor = RoundToTernary.apply(  # type: ignore[no-untyped-call]
            self.latent, self.scale, self.shift
        )
        levels = levels.flatten(1)[:, : self.columns]
        if self.permutation is None:
            return levels
        return levels[:, self.permutation.long().argsort()]

    def trainable(self) -> list[tuple[TrainableKind, nn.Parameter, float]]:
        """Latent weights by their deviation; shifts by the scales, as they are about 0."""
        size = float(self.scale.detach().abs().mean())
        return [
            (TrainableKind.CODE, self.latent, float(self.latent.detach().std())),
            (TrainableKind.SCALE, self.scale, size),
            (TrainableKind.SCALE, self.shift, size),
        ]

    @torch.no_grad()
    def working(self) -> dict[str, Tensor]:
        """Scales and shifts in fp16, a scale not below 0; codes the nearest on those levels."""
        scale, shift = self.scale.clamp(min=0).half(), self.shift.half()
        if not bool(scale.isfinite().all() & shift.isfinite().all()):
            raise OverflowError("a scale or shift is not finite in float16")
        levels = scale.float()[..., None], shift.float()[..., None]
        codes = nearest_codes(self.latent, *levels).flatten(1)[:, : self.columns]
        found = {"codes": codes.to(torch.int8), "scale": scale, "shift": shift}
        if self.permutation is not None:
            found["permutation"] = self.permutation
        return found


class RoundToTernary(torch.autograd.Function):
    """``(latent f32[n, G, g], scale f32[n, G], shift f32[n, G]) -> f32[n, G, g]``."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Write out the nearest levels; a scale below 0 counts as 0."""
        positive = scale.clamp(min=0)[..., None]
        codes = nearest_codes(latent, positive, shift[..., None])
        ctx.save_for_backward(codes.to(torch.int8))
        return codes * positive + shift[..., None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Straight through to the latent weight; exact for scale and shift, codes fixed."""
        (gradient,) = gradients
        (codes,) = ctx.saved_tensors
        return gradient, (gradient * codes).sum(-1), gradient.sum(-1)
