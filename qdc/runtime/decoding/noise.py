"""Noise by name: what a place draws depends on its seed, its position and its step alone.

So an answer is the same on every device and in every batch. Philox counts instead of remembering, a
key is all its state, and numpy promises the bits of it; ``uniforms`` of the calibration has 24 bits
a number, too few for Gumbel noise over a vocabulary (source: LLaDA's sampler, which wants float64).
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BITS = 52
"""So many that the middle of every part is a float64."""


class Places(NamedTuple):
    """Open places of a step, each with what its noise depends on."""

    seeds: Sequence[int]
    """Of the row of each place."""
    positions: Sequence[int]
    """In its row."""
    step: int
    """Number of the step within the block that is being filled."""

    def draws(self, kind: str, count: int) -> Tensor:
        """Uniform numbers in (0, 1) for each place, ``f64[places, count]``, on the CPU."""
        found = np.empty((len(self.positions), count))
        for row, (seed, position) in enumerate(zip(self.seeds, self.positions, strict=True)):
            found[row] = _uniforms(count, kind, seed, self.step, position)
        return torch.from_numpy(found)


def _uniforms(count: int, *key: str | int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """The middles of 2**52 equal parts of (0, 1): neither end is ever drawn."""
    name = "\0".join(map(str, key)).encode()
    digest = int.from_bytes(hashlib.shake_256(name).digest(16), "little")
    raw: np.ndarray[tuple[int], np.dtype[np.uint64]] = np.random.Philox(key=digest).random_raw(
        count
    )
    numbers: np.ndarray[tuple[int], np.dtype[np.float64]] = (raw >> np.uint64(64 - BITS)) + 0.5
    return numbers * 2.0**-BITS


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform numbers, in their shape."""
    return -torch.log(-torch.log(uniform))
