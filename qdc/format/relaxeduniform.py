"""Uniform grids that gradients can move: latent weights behind the codes, scales and minima."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from qdc.format.relaxation import Relaxation, TrainableKind
from qdc.numerics.integergrid import Scales, shortened
from qdc.numerics.uniform import round_to_grid

MARGIN = 0.49
"""How far from its level, in steps, a weight counts at most where another level follows."""
START = 0.5
"""Share of the way from the level to the weight at which a latent weight starts."""


class RelaxedUniform(Relaxation):
    """All groups of a layer side by side, ``[rows, G, group]``; integer zero points stay fixed."""

    def __init__(
        self, working: Mapping[str, Tensor], weight: Tensor, bits: int, scales: Scales = "f16"
    ) -> None:
        """Start from a lowered layer.

        Args:
            working: ``codes``, ``scale``, and ``minimum`` or ``zero``, as the codec has them.
            weight: f32[rows, columns], the original weight: latent weights start near it.
            bits: of a code.
            scales: what scales are rounded to, as the codec says.
        """
        super().__init__()
        self.scales: Scales = scales
        codes = working["codes"].float()
        self.bits, self.columns = bits, weight.shape[1]
        self.shape = codes.shape
        self.scale = nn.Parameter(working["scale"].float())
        self.minimum = nn.Parameter(working["minimum"].float()) if "minimum" in working else None
        self.zero = working["zero"].float() if "zero" in working else None
        self.latent = nn.Parameter(self._start(codes, weight))

    def _start(self, codes: Tensor, weight: Tensor) -> Tensor:
        """Half way from each level to the weight, or to the edge of the cell if that is nearer.

        So the first steps do not flip the codes of weights at an edge.
        """
        padding = self.shape[1] * self.shape[2] - self.columns
        padded = pad(weight, (0, padding)).reshape(self.shape)
        step = self.scale.detach()[..., None]
        level = codes * step + self._minimum().detach()[..., None]
        lowest = torch.where(codes > 0, level - MARGIN * step, -torch.inf)
        highest = torch.where(codes < 2**self.bits - 1, level + MARGIN * step, torch.inf)
        return torch.lerp(level, padded.clamp(lowest, highest), START)

    def _minimum(self) -> Tensor:
        return self._minimum_at(self.scale, self.minimum)

    def _minimum_at(self, scale: Tensor, minimum: Tensor | None) -> Tensor:
        """Value of code 0: as it is, or by the zero point."""
        if minimum is not None:
            return minimum
        assert self.zero is not None
        return 0 - scale * self.zero

    def dense(self) -> Tensor:
        """Round the latent weights to the nearest levels."""
        result: Tensor = RoundToGrid.apply(  # type: ignore[no-untyped-call]
            self.latent, self.scale, self._minimum(), self.bits
        )
        return result.flatten(1)[:, : self.columns]

    def trainable(self) -> list[tuple[TrainableKind, nn.Parameter, float]]:
        """Latent weights by their deviation, scales and minima by their mean size."""
        found = [
            (TrainableKind.CODE, self.latent, float(self.latent.detach().std())),
            (TrainableKind.SCALE, self.scale, float(self.scale.detach().abs().mean())),
        ]
        if self.minimum is not None:
            size = float(self.minimum.detach().abs().mean())
            found.append((TrainableKind.SCALE, self.minimum, size))
        return found

    @torch.no_grad()
    def working(self) -> dict[str, Tensor]:
        """Scales and minima as they are stored, a scale not below 0; codes the nearest on them."""
        scale = shortened(self.scale.clamp(min=0), self.scales).half()
        fields = {"scale": scale}
        if self.minimum is not None:
            fields["minimum"] = self.minimum.half()
        if self.zero is not None:
            fields["zero"] = self.zero.to(torch.uint8)
        stored = fields["minimum"].float() if "minimum" in fields else None
        minimum = self._minimum_at(scale.float(), stored)
        if not bool(scale.isfinite().all() & minimum.isfinite().all()):
            raise OverflowError("a scale or minimum is not finite in fp16")
        codes = round_to_grid(self.latent, scale.float(), minimum, self.bits)
        codes.flatten(1)[:, self.columns :] = 0
        return {"codes": codes.to(torch.uint8), **fields}


class RoundToGrid(torch.autograd.Function):
    """``(latent f32[n, G, g], scale f32[n, G], minimum f32[n, G], bits) -> f32[n, G, g]``."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, minimum: Tensor, bits: int) -> Tensor:
        """Write out the nearest levels; a scale below 0 counts as 0."""
        codes = round_to_grid(latent, scale, minimum, bits)
        ctx.save_for_backward(codes.to(torch.uint8))
        return codes * scale.clamp(min=0)[..., None] + minimum[..., None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Straight through to the latent weight; exact for scale and minimum, codes fixed."""
        (gradient,) = gradients
        (codes,) = ctx.saved_tensors
        return gradient, (gradient * codes).sum(-1), gradient.sum(-1), None
