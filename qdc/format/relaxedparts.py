"""Formats by parts that gradients can move: latent weights behind the codes, and all scales.

What a code stands for is the codec's own ``dense``, which is linear in every scale: its gradient
with codes fixed is the exact one, and a latent weight gets that of its level (straight-through
estimator, as in ``numerics.rounding``). Which columns and elements belong to which kind of part
stays as it is; magnitude classes are codes and may change.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from itertools import product

import torch
from torch import Tensor, nn

from qdc.format.relaxation import Relaxation, TrainableKind

Dense = Callable[[Mapping[str, Tensor]], Tensor]
MARGIN = 0.49
"""How far towards the next level, in parts of the distance, a latent weight starts at most."""
START = 0.5
"""Share of the way from the level to the weight at which a latent weight starts."""


class RelaxedParts(Relaxation):
    """Latent weights and scales behind the working tensors of a codec."""

    scales: tuple[str, ...]
    """Suffixes of the trainable working tensors."""

    def __init__(self, dense: Dense, working: Mapping[str, Tensor], weight: Tensor) -> None:
        """Start from a lowered layer.

        Args:
            dense: of the codec.
            working: its working tensors.
            weight: f32[rows, columns], the original weight: latent weights start near it.
        """
        super().__init__()
        self.written_out = dense
        self.start = {s: t for s, t in working.items() if s not in self.scales}
        found = {s: nn.Parameter(working[s].float()) for s in self.scales if s in working}
        self.trained = nn.ParameterDict(found)
        with torch.no_grad():
            level = dense(working)
            below, above = self.cell(level)
            inside = weight.clamp(
                level + MARGIN * (below - level), level + MARGIN * (above - level)
            )
            self.latent = nn.Parameter(torch.lerp(level, inside, START))

    @abstractmethod
    def cell(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """The levels next to ``level`` below and above, f32[rows, columns]; infinite if none."""

    @abstractmethod
    def codes(self, scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Working tensors beside the scales: codes of the levels nearest to the latent weights."""

    def dense(self) -> Tensor:
        """The nearest levels; gradients reach latent weights and scales."""
        scales = dict(self.trained.items())
        with torch.no_grad():
            codes = self.codes(scales)
        level = self.written_out({**codes, **scales})
        return level + (self.latent - self.latent.detach())

    def trainable(self) -> list[tuple[TrainableKind, nn.Parameter, float]]:
        """Latent weights by their deviation, scales by their mean size."""
        found = [(TrainableKind.CODE, self.latent, float(self.latent.detach().std()))]
        for scale in self.trained.values():
            found.append((TrainableKind.SCALE, scale, float(scale.detach().abs().mean())))
        return found

    @torch.no_grad()
    def working(self) -> dict[str, Tensor]:
        """Scales in fp16, codes the nearest on those. Raises ``OverflowError``."""
        scales = {suffix: scale.half() for suffix, scale in self.trained.items()}
        if not all(bool(scale.isfinite().all()) for scale in scales.values()):
            raise OverflowError("a scale or mean is not finite in fp16")
        return {**self.codes(scales), **scales}


class RelaxedPartition(RelaxedParts):
    """Two planes of signs and classes, and classes of salient weights where there are any."""

    scales = ("row_scale", "mean", "col_scale", "sparse_col_scale")

    def candidates(
        self, scales: Mapping[str, Tensor]
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The level of every weight for each setting of all bits, and that setting."""
        choices = (-1, 1), (-1, 1), (0, 1) if "classes" in self.start else (0,)
        for first, second, sparse in product(*choices):
            planes = torch.full_like(self.start["planes"], second)
            planes[:, 0] = first
            codes = {**self.start, "planes": planes}
            if "classes" in self.start:
                codes["classes"] = torch.full_like(self.start["classes"], sparse)
            yield self.written_out({**codes, **scales}), codes

    def cell(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Of the four or eight levels of each weight."""
        below, above = (torch.full_like(level, end) for end in (-torch.inf, torch.inf))
        for other, _ in self.candidates(dict(self.trained.items())):
            above = torch.where(other > level, torch.minimum(above, other), above)
            below = torch.where(other < level, torch.maximum(below, other), below)
        return below, above

    def codes(self, scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bit by bit of the nearest candidate; of equal ones the first."""
        nearest = torch.full_like(self.latent, torch.inf)
        best = dict(self.start)
        salient = self.start["salient"] > 0
        for level, codes in self.candidates(scales):
            distance = (self.latent - level).abs_()
            closer = distance < nearest
            nearest = torch.minimum(nearest, distance)
            best["planes"] = torch.where(closer[:, None], codes["planes"], best["planes"])
            if "classes" in best:
                chosen = codes["classes"]
                best["classes"] = torch.where(closer[:, salient], chosen, best["classes"])
        return best


class RelaxedMasked(RelaxedParts):
    """Signs, and 8-bit codes of marked weights."""

    scales = ("mean", "scale", "minimum", "step")

    def __init__(
        self, dense: Dense, working: Mapping[str, Tensor], weight: Tensor, width: int, bits: int
    ) -> None:
        """Start from a lowered layer whose groups have ``width`` columns, and codes of ``bits``."""
        self.width, self.bits = width, bits
        super().__init__(dense, working, weight)

    def cell(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """The other sign, or one code less and one more."""
        scales = dict(self.trained.items())
        mean, scale, step = (self._spread(scales[s]) for s in ("mean", "scale", "step"))
        marked, codes = self.start["marked"] > 0, self.start["codes"]
        below = torch.where(level > mean, mean - scale.abs(), -torch.inf)
        above = torch.where(level < mean, mean + scale.abs(), torch.inf)
        lower = torch.where(codes > 0, level - step, -torch.inf)
        upper = torch.where(codes < 2**self.bits - 1, level + step, torch.inf)
        return torch.where(marked, lower, below), torch.where(marked, upper, above)

    def codes(self, scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The nearest of both signs, or of all codes."""
        mean, scale, minimum, step = (self._spread(scales[s].float()) for s in self.scales)
        marked = self.start["marked"] > 0
        positive = (self.latent - mean) * scale >= 0
        live = step > 0
        codes = ((self.latent - minimum) / torch.where(live, step, 1.0)).round()
        codes = codes.clamp(0, 2**self.bits - 1) * (live & marked)
        signs = torch.where(positive & ~marked, 1, -1)
        return {**self.start, "signs": signs.to(torch.int8), "codes": codes.to(torch.uint8)}

    def _spread(self, values: Tensor) -> Tensor:
        """Numbers of groups ``[rows, G]`` at each column."""
        columns = self.start["marked"].shape[1]
        return values.repeat_interleave(self.width, 1)[:, :columns]
