"""Sigma-delta codes that gradients can move: latent numbers behind the codes, scales and means."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qdc.format.relaxation import Relaxation, TrainableKind
from qdc.numerics.sigma_delta import Levels, SigmaDelta


class RelaxedSigmaDelta(Relaxation):
    """All codes of a layer side by side, ``[rows, T]``.

    Latent numbers start at the codes, not on their way to the weight: there are more codes than
    columns, so the others have settled around each, and one that moves alone costs more than it
    gains. Begun half way, no region of the embedded model got better on the samples held out.
    """

    def __init__(self, working: Mapping[str, Tensor], blocks: Sequence[SigmaDelta]) -> None:
        """Start from a lowered layer.

        Args:
            working: ``codes``, ``scale``, ``mean`` and ``seed``, as the codec has them.
            blocks: the codec's blocks, left to right.
        """
        super().__init__()
        self.levels: Levels = blocks[0].levels
        self.seed = working["seed"]
        self.lengths = [block.length for block in blocks]
        self.written = [block.basis(working["codes"].device) for block in blocks]
        self.scale = nn.Parameter(working["scale"].float())
        self.mean = nn.Parameter(working["mean"].float())
        self.latent = nn.Parameter(working["codes"].float())

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
