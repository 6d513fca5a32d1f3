"""What calibration states say of a quantizer of tokens: static ranges, and the best clip ratios.

Masked and visible tokens are counted apart where the quantizer tells them apart.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qdc.format.tokenquantizer import TokenQuantizer
from qdc.ir.activations import RowFormat
from qdc.numerics.rowquantizer import DTYPES, best_clip


class Ranges:
    """The least and the largest number of each group of columns, by class of tokens."""

    def __init__(self, form: RowFormat, columns: int, device: torch.device) -> None:
        """Begin with nothing: a range is always one around 0."""
        shape = (len(form.clip), form.quantizer.groups(columns))
        self.form = form
        self.low, self.high = torch.zeros(shape, device=device), torch.zeros(shape, device=device)

    def add(self, values: Tensor, masked: Tensor) -> None:
        """Look at tokens f32[..., columns], of which bool[...] are masked."""
        group = self.form.group or values.shape[-1]
        tokens = values.flatten(0, -2)
        padded = torch.nn.functional.pad(tokens, (0, -tokens.shape[-1] % group))
        parts = padded.reshape(len(tokens), self.low.shape[1], group)
        lows, highs = parts.amin(-1), parts.amax(-1)
        for number, which in enumerate(_classes(self.form, masked)):
            if bool(which.any()):
                self.low[number] = torch.minimum(self.low[number], lows[which].amin(0))
                self.high[number] = torch.maximum(self.high[number], highs[which].amax(0))

    def stored(self, form: RowFormat) -> dict[str, Tensor]:
        """Scales, and zero points, with the clips of a format, as an artifact stores them.

        A class without tokens takes the ranges of the other one.
        """
        clips = self.low.new_tensor(form.clip)[:, None]
        low, high = self.low, self.high
        if len(form.clip) > 1:
            empty = (low == 0).all(1) & (high == 0).all(1)
            low = torch.where(empty[:, None], low.flip(0), low)
            high = torch.where(empty[:, None], high.flip(0), high)
        low, high, quantizer = low * clips, high * clips, form.quantizer
        dtype = DTYPES[form.scales]
        if form.zeros == "asymmetric":
            scale, zero = quantizer.spanning(low, high)
            return {"input_scale": scale.to(dtype).cpu(), "input_zero": zero.cpu()}
        scale = torch.maximum(-low, high) / quantizer.highest
        return {"input_scale": scale.to(dtype).cpu()}


class ClipSearch:
    """Weighted squared errors of several clip ratios, by class of tokens."""

    def __init__(self, form: RowFormat, grid: Sequence[float], ranges: Ranges | None) -> None:
        """Take the ratios to try; static ranges, if those are what is clipped."""
        self.classes = len(form.clip)
        self.losses = {clip: torch.zeros(self.classes, dtype=torch.float64) for clip in grid}
        self.size = torch.zeros(self.classes, dtype=torch.float64)
        self.quantizers = {clip: _with_clip(form, clip, ranges) for clip in grid}
        self.form = form

    def add(
        self, values: Tensor, masked: Tensor, energy: Tensor, weights: Tensor | None = None
    ) -> None:
        """Add the errors of tokens.

        Args:
            values: f32[..., columns].
            masked: bool[...], which of them are masked.
            energy: f32[columns], what a squared error in each column counts.
            weights: f32[...], what a token counts; 1 if not given.
        """
        classes = _classes(self.form, masked)
        self.size += self._summed(values, energy, weights, classes)
        for clip, quantizer in self.quantizers.items():
            lost = quantizer.round(values, masked).sub_(values)
            self.losses[clip] += self._summed(lost, energy, weights, classes)

    def best(self) -> tuple[tuple[float, ...], float]:
        """The ratio of least loss of each class, and the share that is lost with them.

        A class without tokens takes the ratio that is best for all.
        """
        grid, chosen, lost = tuple(self.losses), list[float](), 0.0
        overall, _ = best_clip(grid, lambda clip: float(self.losses[clip].sum()))
        for number in range(self.classes):
            of_class = {clip: float(self.losses[clip][number]) for clip in grid}
            found, losses = best_clip(grid, of_class.__getitem__)
            chosen.append(found if float(self.size[number]) else overall)
            lost += losses[chosen[-1]]
        size = float(self.size.sum())
        return tuple(chosen), lost / size if size else 0.0

    def _summed(
        self, values: Tensor, energy: Tensor, weights: Tensor | None, classes: list[Tensor]
    ) -> Tensor:
        tokens = (values.square() @ energy).double()
        if weights is not None:
            tokens = tokens * weights.double()
        flat = tokens.flatten()
        return torch.stack([flat[which].sum() for which in classes]).cpu()


def _classes(form: RowFormat, masked: Tensor) -> list[Tensor]:
    """Which tokens are of each class, bool[n] each."""
    flat = masked.flatten()
    return [~flat, flat] if len(form.clip) > 1 else [torch.ones_like(flat)]


def _with_clip(form: RowFormat, clip: float, ranges: Ranges | None) -> TokenQuantizer:
    tried = form.model_copy(update={"clip": (clip,) * len(form.clip)})
    if ranges is None:
        return TokenQuantizer(tried)
    return TokenQuantizer.of(tried, ranges.stored(tried), ranges.low.device)
