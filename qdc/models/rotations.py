"""How positions turn the pairs of a head: computed once for all layers that ask alike.

Queries and keys of every layer of a model are turned alike. Tables of whole texts are kept, the
last few of a process; those of a window are kept by the window (``window.Window.rotation``).
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, ``f32[..., positions, 1, pairs]`` each, alike for all heads."""


class Frequencies(NamedTuple):
    """How fast the pairs of a head turn: ``base ** (-pair / pairs)``, the last ones not at all."""

    base: float
    pairs: int
    turning: int
    """The first pairs, which turn; the others stand still."""

    def rotation(self, positions: Tensor) -> Rotation:
        """Cosines and sines at positions ``f32[..., positions]``, on their device."""
        device = positions.device
        exponent = torch.arange(self.pairs, device=device, dtype=torch.float32) / self.pairs
        each = self.base**-exponent
        if self.turning < self.pairs:
            each = each.masked_fill(torch.arange(self.pairs, device=device) >= self.turning, 0.0)
        angles = positions[..., None] * each
        return angles.cos()[..., None, :], angles.sin()[..., None, :]

    def of_text(self, values: Tensor) -> Rotation:
        """Cosines and sines at the positions of ``values``, ``[batch, T, ...]``, from 0 on."""
        length, device = values.shape[1], values.device
        if torch.compiler.is_compiling() or type(values) is not Tensor:
            # What is traced or stands for something else leaves nothing behind.
            return _rotation(self, length, device)
        return _kept_rotation(self, length, device)


def _rotation(frequencies: Frequencies, length: int, device: torch.device) -> Rotation:
    return frequencies.rotation(torch.arange(length, device=device, dtype=torch.float32))


@functools.lru_cache(maxsize=4)
def _kept_rotation(frequencies: Frequencies, length: int, device: torch.device) -> Rotation:
    # Made under inference mode they could not be used where derivatives are wanted.
    with torch.inference_mode(mode=False):
        return _rotation(frequencies, length, device)
