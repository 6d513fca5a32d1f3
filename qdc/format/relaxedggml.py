"""Blocks of ggml that gradients can move: latent weights, and every scale and minimum."""

import torch
from torch import Tensor, nn

from qdc.format.relaxation import Relaxation, TrainableKind
from qdc.numerics.ggmltypes import BlockType, Fields
from qdc.numerics.subblockfit import Levels, round_to_levels

MARGIN = 0.49
"""How far from its level, in steps, a weight counts at most where another level follows."""
START = 0.5
"""Share of the way from the level to the weight at which a latent weight starts."""


class RelaxedGgml(Relaxation):
    """All blocks of a layer. Integers of sub-blocks move as numbers, and are rounded where read."""

    def __init__(self, fields: Fields, weight: Tensor, kind: BlockType) -> None:
        """Start from a lowered layer.

        Args:
            fields: of its blocks.
            weight: f32[rows, columns], the original weight: latent weights start near it.
            kind: of the blocks.
        """
        super().__init__()
        self.kind = kind
        self.d = nn.Parameter(fields.d.clone())
        self.scales = None if fields.scales is None else nn.Parameter(fields.scales.float())
        self.dmin = None if fields.dmin is None else nn.Parameter(fields.dmin.clone())
        self.minima = None if fields.minima is None else nn.Parameter(fields.minima.float())
        self.latent = nn.Parameter(self._start(fields.codes.float(), weight))

    @torch.no_grad()
    def _start(self, codes: Tensor, weight: Tensor) -> Tensor:
        """Half way from each level to the weight, or to the edge of the cell if that is nearer."""
        levels = self._levels()
        step = levels.step[..., None]
        level = codes * step - levels.minimum[..., None]
        reach = (MARGIN * step).abs()
        lowest, highest = self.kind.codes
        up, down = codes < highest, codes > lowest
        # With a negative step the next code is the next level below.
        above = torch.where(step > 0, up, down)
        below = torch.where(step > 0, down, up)
        near = torch.where(below, level - reach, -torch.inf)
        far = torch.where(above, level + reach, torch.inf)
        return torch.lerp(level, weight.reshape(codes.shape).clamp(near, far), START)

    def _levels(self) -> Levels:
        step = self.d[..., None]
        if self.scales is not None:
            lowest, highest = self.kind.scales or (0, 0)
            step = step * _rounded(self.scales, lowest, highest)
        if self.dmin is None or self.minima is None:
            return Levels(step, torch.zeros_like(step))
        return Levels(step, self.dmin[..., None] * _rounded(self.minima, 0, self.kind.minima))

    def dense(self) -> Tensor:
        """Round the latent weights to the nearest levels; the rounding passes gradients on."""
        levels = self._levels()
        with torch.no_grad():
            codes = round_to_levels(self.latent, levels, self.kind)
        level = codes * levels.step[..., None] - levels.minimum[..., None]
        return (level + (self.latent - self.latent.detach())).flatten(1)

    def trainable(self) -> list[tuple[TrainableKind, nn.Parameter, float]]:
        """Latent weights by their deviation, all scales by their mean size."""
        found = [(TrainableKind.CODE, self.latent, float(self.latent.detach().std()))]
        for scale in (self.d, self.scales, self.dmin, self.minima):
            if scale is not None:
                found.append((TrainableKind.SCALE, scale, float(scale.detach().abs().mean())))
        return found

    @torch.no_grad()
    def working(self) -> dict[str, Tensor]:
        """Super-scales in fp16, integers rounded; codes the nearest on the levels of these."""
        for scale in (self.d, self.dmin):
            if scale is not None:
                scale.copy_(scale.half().float())
                if not bool(scale.isfinite().all()):
                    raise OverflowError("a scale of a block is not finite in fp16")
        levels = self._levels()
        fields = Fields(
            round_to_levels(self.latent, levels, self.kind).to(torch.int8),
            self.d.detach(),
            _integers(self.scales, *(self.kind.scales or (0, 0)), torch.int8),
            None if self.dmin is None else self.dmin.detach(),
            _integers(self.minima, 0, self.kind.minima, torch.uint8),
        )
        return {"blocks": self.kind.pack(fields).flatten(1)}


def _rounded(values: Tensor, lowest: int, highest: int) -> Tensor:
    """Integers in the range, through which gradients go straight."""
    return values + (values.round().clamp(lowest, highest) - values).detach()


def _integers(
    values: Tensor | None, lowest: int, highest: int, dtype: torch.dtype
) -> Tensor | None:
    return None if values is None else values.detach().round().clamp(lowest, highest).to(dtype)
