"""Bit planes that gradients can move: latent weights behind the codes, coefficients, offsets."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from qdc.format.relaxation import Relaxation, TrainableKind
from qdc.numerics.planegrid import Coefficients, PlaneGrid, stored_coefficients

MARGIN = 0.49
"""How far from its level, as a share of the way to the next, a weight counts at most."""
START = 0.5
"""Share of the way from the level to the weight at which a latent weight starts."""


class RelaxedPlanes(Relaxation):
    """All groups of a layer as rows of their own, ``[rows * G, group]``."""

    def __init__(self, working: Mapping[str, Tensor], weight: Tensor, group: int) -> None:
        """Start from a lowered layer.

        Args:
            working: ``codes``, ``coefficient``, and ``offset`` if there is one, of the codec.
            weight: f32[rows, columns], the original weight: latent weights start near it.
            group: columns of a group.
        """
        super().__init__()
        self.rows, self.columns = weight.shape
        self.group = min(group, self.columns)  # a group wider than the layer is not padded to it
        planes = working["coefficient"].shape[1]
        coefficient = working["coefficient"].float().transpose(1, 2).reshape(-1, planes)
        self.coefficient = nn.Parameter(coefficient.contiguous())
        self.offset = (
            nn.Parameter(working["offset"].float().flatten()) if "offset" in working else None
        )
        self.latent = nn.Parameter(self._start(self._by_group(working["codes"]), weight))

    def _start(self, codes: Tensor, weight: Tensor) -> Tensor:
        """Half way from each level to the weight, or to the edge of the cell if that is nearer.

        So the first steps do not flip the codes of weights at an edge.
        """
        grid = PlaneGrid(self._coefficients())
        level = grid.write(codes)
        above, below = torch.full_like(level, torch.inf), torch.full_like(level, -torch.inf)
        for other in grid.sorted[:, :, None]:
            above = torch.where(other > level, torch.minimum(above, other), above)
            below = torch.where(other < level, torch.maximum(below, other), below)
        lowest, highest = level + MARGIN * (below - level), level + MARGIN * (above - level)
        return torch.lerp(level, self._by_group(weight).clamp(lowest, highest), START)

    def dense(self) -> Tensor:
        """Round the latent weights to the nearest levels."""
        result: Tensor = RoundToPlanes.apply(  # type: ignore[no-untyped-call]
            self.latent, self.coefficient, self.offset
        )
        return self._by_row(result)

    def trainable(self) -> list[tuple[TrainableKind, nn.Parameter, float]]:
        """Latent weights by their deviation, coefficients and offsets by their mean size."""
        found = [
            (TrainableKind.CODE, self.latent, float(self.latent.detach().std())),
            (TrainableKind.SCALE, self.coefficient, float(self.coefficient.detach().abs().mean())),
        ]
        if self.offset is not None:
            size = float(self.offset.detach().abs().mean())
            found.append((TrainableKind.SCALE, self.offset, size))
        return found

    @torch.no_grad()
    def working(self) -> dict[str, Tensor]:
        """Coefficients and offsets in fp16; codes the nearest on those levels."""
        grid = PlaneGrid(stored_coefficients(*self._coefficients()))
        planes = self.coefficient.shape[1]
        numbers = grid.coefficients.planes.reshape(self.rows, -1, planes)
        found = {
            "codes": self._by_row(grid.encode(grid.round(self.latent))),
            "coefficient": numbers.transpose(1, 2).half().contiguous(),
        }
        if grid.coefficients.offset is not None:
            found["offset"] = grid.coefficients.offset.reshape(self.rows, -1).half()
        return found

    def _coefficients(self) -> Coefficients:
        offset = None if self.offset is None else self.offset.detach()
        return Coefficients(self.coefficient.detach(), offset)

    def _by_group(self, tensor: Tensor) -> Tensor:
        """``[rows, columns]`` to ``[rows * G, group]``, the last group padded with zeros."""
        return pad(tensor, (0, -self.columns % self.group)).reshape(-1, self.group)

    def _by_row(self, tensor: Tensor) -> Tensor:
        """``[rows * G, group]`` to ``[rows, columns]``, without the padding."""
        return tensor.reshape(self.rows, -1)[:, : self.columns].contiguous()


class RoundToPlanes(torch.autograd.Function):
    """``(latent f32[n, g], coefficient f32[n, K], offset f32[n] or None) -> f32[n, g]``."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, coefficient: Tensor, offset: Tensor | None) -> Tensor:
        """Write out the nearest levels."""
        grid = PlaneGrid(Coefficients(coefficient, offset))
        dense = grid.round(latent)
        ctx.save_for_backward(grid.encode(dense))
        ctx.planes, ctx.with_offset = coefficient.shape[1], offset is not None
        return dense

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Straight through to the latent weight; exact for the rest, codes fixed."""
        (gradient,) = gradients
        (codes,) = ctx.saved_tensors
        parts = [(gradient * (codes >> k & 1)).sum(1) for k in range(ctx.planes)]
        offset = gradient.sum(1) if ctx.with_offset else None
        return gradient, torch.stack(parts, dim=1), offset
