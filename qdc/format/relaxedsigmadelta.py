"""Sigma-delta codes that gradients can move: latent numbers behind the codes, scales and means."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qdc.format.relaxation import Relaxation, TrainableKind
from qdc.numerics.resampling import upsampling
from qdc.numerics.sigma_delta import Coded, Levels, SigmaDelta

MARGIN = 0.49
"""How far from its code a latent number is at most where another code follows."""
START = 0.5
"""Share of the way at which latent numbers start, to where they would write the weight itself."""


class RelaxedSigmaDelta(Relaxation):
    """All codes of a layer side by side, ``[rows, T]``."""

    def __init__(
        self, working: Mapping[str, Tensor], weight: Tensor, blocks: Sequence[SigmaDelta]
    ) -> None:
        """Start from a lowered layer.

        Args:
            working: ``codes``, ``scale``, ``mean`` and ``seed``, as the codec has them.
            weight: f32[rows, columns], the original weight: latent numbers start towards it.
            blocks: the codec's blocks, left to right.
        """
        super().__init__()
        self.levels: Levels = blocks[0].levels
        self.seed = working["seed"]
        self.lengths = [block.length for block in blocks]
        self.written = [block.basis(weight.device) for block in blocks]
        self.scale = nn.Parameter(working["scale"].float())
        self.mean = nn.Parameter(working["mean"].float())
        self.latent = nn.Parameter(self._start(working["codes"], weight, blocks))

    def _start(self, codes: Tensor, weight: Tensor, blocks: Sequence[SigmaDelta]) -> Tensor:
        """Half way from each code to where the rows would be met, or to the edge of its cell."""
        scales, means = self.scale.detach(), self.mean.detach()
        parts = codes.split(self.lengths, dim=1)  # type: ignore[no-untyped-call]
        wanted, start = [], 0
        for at, (block, part) in enumerate(zip(blocks, parts, strict=True)):
            columns, start = slice(start, start + block.width), start + block.width
            error = weight[:, columns] - block.dense(Coded(part, scales[:, at], means[:, at]))
            up = upsampling(block.width, block.length).float().to(weight.device)
            scale = torch.where(scales[:, at] > 0, scales[:, at], torch.inf)
            wanted.append(part + block.rotation.forward(error) @ up / scale[:, None])
        top = torch.where(codes < 1, codes + MARGIN * self.step, torch.inf)
        bottom = torch.where(codes > -1, codes - MARGIN * self.step, -torch.inf)
        return torch.lerp(codes.float(), torch.cat(wanted, dim=1).clamp(bottom, top), START)

    @property
    def step(self) -> int:
        """Distance of two codes."""
        return 2 if self.levels == "binary" else 1

    def codes(self) -> Tensor:
        """The nearest codes, f32[rows, T]."""
        if self.levels == "binary":
            return torch.where(self.latent > 0, 1.0, -1.0)
        return self.latent.round().clamp(-1, 1)

    def dense(self) -> Tensor:
        """Write out the nearest codes; gradients pass straight through the rounding."""
        codes = self.latent + (self.codes() - self.latent).detach()
        parts = codes.split(self.lengths, dim=1)  # type: ignore[no-untyped-call]
        scale = self.scale.clamp(min=0)
        found = [
            part * scale[:, at, None] @ basis + self.mean[:, at, None] * ones
            for at, (part, (basis, ones)) in enumerate(zip(parts, self.written, strict=True))
        ]
        return torch.cat(found, dim=1)

    def trainable(self) -> list[tuple[TrainableKind, nn.Parameter, float]]:
        """Latent numbers by their deviation; means by the scales, as they are about 0."""
        size = float(self.scale.detach().mean())
        return [
            (TrainableKind.CODE, self.latent, float(self.latent.detach().std())),
            (TrainableKind.SCALE, self.scale, size),
            (TrainableKind.SCALE, self.mean, size),
        ]

    @torch.no_grad()
    def working(self) -> dict[str, Tensor]:
        """Scales and means in fp16, a scale not below 0; the nearest codes."""
        scale, mean = self.scale.clamp(min=0).half(), self.mean.half()
        if not bool(scale.isfinite().all() & mean.isfinite().all()):
            raise OverflowError("a scale or mean is not finite in fp16")
        codes = self.codes().to(torch.int8)
        return {"codes": codes, "scale": scale, "mean": mean, "seed": self.seed}
