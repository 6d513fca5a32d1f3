"""Sigma-delta codes: what a first-order loop makes of rows that were sampled more often.

Each position takes over what the ones before it have left, so errors end up where the spectrum
is cut off. ``SigmaDelta.fit`` is the published code; ``refine`` moves one position at a time to
where the loss wants it, and refits scale and mean, as the written-out block is linear in each.
Source: related-systems.md 1 and 18 (SDQ-LLM, arXiv 2510.03275); the refinement is ours.
"""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from qdc.numerics.hadamard import RandomHadamard
from qdc.numerics.resampling import downsampling, upsampling

Levels = Literal["ternary", "binary"]
PART: Final = 1 << 22
"""Numbers that quantiles are taken of at a time: torch sorts at most 2^24."""
SINGULAR: Final = 1e-9


class Shape(NamedTuple):
    """Parameters of the modulator (SDQ-LLM's defaults without a configuration).

    Attributes:
        sd_scale: The scale is this times a quantile of a row's magnitudes.
        p_scale: Which quantile.
        p_cut: Quantile of the scaled magnitudes below which a ternary code is 0.
    """

    sd_scale: float = 0.9
    p_scale: float = 0.9
    p_cut: float = 0.5


class Coded(NamedTuple):
    """One block of columns.

    Attributes:
        codes: i8[n, L], -1, 0 and +1.
        scale: f32[n], values of fp16.
        mean: f32[n], values of fp16.
    """

    codes: Tensor
    scale: Tensor
    mean: Tensor


def modulate(inputs: Tensor, threshold: Tensor, levels: Levels) -> Tensor:
    """Run the first-order loop over the positions, all rows at once.

    e grows by the input less the code before; the code is the sign of e, or 0 where |e| is below
    the threshold. Binary codes have no threshold, and -1 for 0.

    Args:
        inputs: f32[n, L].
        threshold: f32[n].
        levels: Of the codes.

    Returns:
        i8[n, L].
    """
    positions = inputs.T.contiguous()
    codes = torch.empty_like(positions)
    state = torch.zeros_like(threshold)
    for place, values in enumerate(positions):
        state = state + values
        if levels == "binary":
            codes[place] = torch.where(state > 0, 1.0, -1.0)
        else:
            codes[place] = torch.where(state.abs() >= threshold, state.sign(), 0.0)
        state = state - codes[place]
    return codes.T.to(torch.int8).contiguous()


def row_quantile(values: Tensor, share: float) -> Tensor:
    """Linearly interpolated quantile of each row: f32[n] of f32[n, L]."""
    rows = max(1, PART // values.shape[1])
    return torch.cat([part.quantile(share, dim=1) for part in torch.split(values, rows)])


@dataclass(frozen=True)
class SigmaDelta:
    """The code of blocks of one width: rotation, rate and levels.

    Attributes:
        rotation: Of the block's columns.
        length: Codes of a row of the block.
        levels: Of a code.
    """

    rotation: RandomHadamard
    length: int
    levels: Levels

    @property
    def width(self) -> int:
        """Columns of the block."""
        return len(self.rotation.signs)

    def fit(self, block: Tensor, shape: Shape) -> Coded:
        """Code a block as published.

        Args:
            block: f32[n, width].
            shape: Parameters of the modulator.

        Raises:
            OverflowError: A scale or mean does not fit fp16.
        """
        centred, mean = self.sampled(block)
        sizes = centred.abs()
        scale = stored(row_quantile(sizes, shape.p_scale) * shape.sd_scale)
        return self.coded(centred, mean, scale, row_quantile(sizes, shape.p_cut))

    def sampled(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate and sample up: f32[n, L] without its row mean, and the mean, f32[n], of fp16."""
        up = upsampling(self.width, self.length).float().to(block.device)
        values = self.rotation.forward(block) @ up
        mean = stored(values.mean(dim=1))
        return values - mean[:, None], mean

    def coded(self, centred: Tensor, mean: Tensor, scale: Tensor, cut: Tensor) -> Coded:
        """Modulate what ``sampled`` gave; ``cut``, f32[n], is the threshold before scaling."""
        divisor = torch.where(scale > 0, scale, 1.0)
        codes = modulate(centred / divisor[:, None], cut / divisor, self.levels)
        return Coded(codes, scale, mean)

    def dense(self, coded: Coded) -> Tensor:
        """Write a block out, f32[n, width].

        All of it in fp64, rounded at the end. Codes times the matrix and the scale are exact there,
        and everything else happens in a fixed order: no machine rounds differently.
        """
        down = downsampling(self.width, self.length).to(coded.codes.device)
        mixed = coded.codes.double() @ down
        mixed = mixed * coded.scale.double()[:, None] + coded.mean.double()[:, None]
        return self.rotation.inverse(mixed).float()

    def refine(
        self, block: Tensor, coded: Coded, metric: Tensor, sweeps: int, rounds: int
    ) -> Coded:
        """Lower the loss tr(E M E^T) by sweeps over the codes, and refits between them.

        Each step takes the best code of one position, or the best scale and mean, all others
        fixed: the loss never rises but for rounding, of any row.

        Args:
            block: f32[n, width], what is to be met.
            coded: Where to start.
            metric: f32[width, width], M.
            sweeps: Rounds over all positions, before each refit and at the end.
            rounds: Refits.
        """
        for turn in range(rounds + 1):
            if sweeps:
                coded = self.swept(block, coded, metric, sweeps)
            if turn < rounds:
                coded = self.refitted(block, coded, metric)
        return coded

    def basis(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What a code of 1 at each position writes, f32[L, width], and what a mean of 1 does."""
        down = downsampling(self.width, self.length).to(device)
        ones = torch.ones(1, self.width, dtype=torch.float64, device=device)
        return self.rotation.inverse(down).float(), self.rotation.inverse(ones)[0].float()

    def swept(self, block: Tensor, coded: Coded, metric: Tensor, sweeps: int) -> Coded:
        """Move one position at a time to its best code."""
        basis, _ = self.basis(block.device)
        gram = basis @ metric @ basis.T
        slope = ((block - self.dense(coded)) @ metric @ basis.T).T.contiguous()
        codes = coded.codes.T.float().contiguous()
        scale = coded.scale
        live, divisor = scale > 0, torch.where(scale > 0, scale, 1.0)
        diagonal = gram.diagonal().tolist()
        for _ in range(sweeps):
            for place in range(self.length):
                best = codes[place] + slope[place] / (divisor * diagonal[place])
                if self.levels == "binary":
                    best = torch.where(best > 0, 1.0, -1.0)
                else:
                    best = best.round().clamp(-1, 1)
                best = torch.where(live, best, codes[place])
                slope.addr_(gram[place], (best - codes[place]) * scale, alpha=-1)
                codes[place] = best
        return coded._replace(codes=codes.T.to(torch.int8).contiguous())

    def refitted(self, block: Tensor, coded: Coded, metric: Tensor) -> Coded:
        """Fit scale and mean of each row anew; rows that rounding to fp16 makes worse stay."""
        basis, ones = self.basis(block.device)
        written = coded.codes.float() @ basis
        seen, flat = written @ metric, metric @ ones
        a, b, c = (seen * written).sum(1), seen @ ones, ones @ flat
        u, v = (seen * block).sum(1), block @ flat
        determinant = a * c - b * b
        usable = determinant > SINGULAR * a * c
        safe = torch.where(usable, determinant, 1.0)
        found = torch.stack([(u * c - v * b) / safe, (v * a - u * b) / safe]).half().float()
        keeps = ~(usable & (found[0] > 0) & found.isfinite().all(0))
        scale = torch.where(keeps, coded.scale, found[0])
        mean = torch.where(keeps, coded.mean, found[1])
        tried = coded._replace(scale=scale, mean=mean)
        before, after = (row_loss(block - self.dense(one), metric) for one in (coded, tried))
        better = after < before
        return coded._replace(
            scale=torch.where(better, scale, coded.scale),
            mean=torch.where(better, mean, coded.mean),
        )


def row_loss(error: Tensor, metric: Tensor) -> Tensor:
    """The loss of each row, f32[n]."""
    return ((error @ metric) * error).sum(1)


def stored(values: Tensor) -> Tensor:
    """Numbers as fp16 holds them, in fp32. Raises ``OverflowError`` for those that it does not."""
    found = values.half().float()
    if not bool(found.isfinite().all()):
        raise OverflowError("a scale or mean of a sigma-delta code does not fit fp16")
    return found
