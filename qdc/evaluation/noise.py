"""Random tokens in a canvas, which a model of noise is asked to take out.

The last tokens of a window are its canvas, and what stands before them is text. At ratio r each
token of the canvas is replaced with probability r by one drawn from the whole vocabulary, and the
loss is that of the text's tokens at these places: the model is not told which they are. There is no
bound on the likelihood: its weights of the times are those of masks. Source: the noise that
DiffusionGemma begins with (transformers 5.24); the published code has no loss of its own.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from qdc.evaluation.masked_loss import ratio_mask
from qdc.numerics.random_numbers import uniforms


class Noise(NamedTuple):
    """What is drawn in place of masks."""

    canvas: int
    """Tokens of a canvas."""
    vocabulary: int
    """Tokens that are drawn from."""

    def places(self, windows: int, length: int, ratio: float, seed: int) -> Tensor:
        """Places of the canvas that become noise, at least one a window: ``bool[w, length]``."""
        size = min(self.canvas, length)
        found = torch.zeros(windows, length, dtype=torch.bool)
        found[:, length - size :] = ratio_mask(windows, size, ratio, seed)
        return found

    def tokens(self, windows: int, length: int, seed: int) -> Tensor:
        """A random token for each place, ``i64[w, length]``."""
        rows = [uniforms(length, "evaluate", "noise", seed, window) for window in range(windows)]
        return (torch.stack(rows).double() * self.vocabulary).long()
