"""Noise by name: what a place draws depends on its seed, its position and its step alone.

So an answer is the same on every device and in every batch. The key of a place is hashed, and
SplitMix64 counts on from the hash: whole numbers of 64 bits, equal wherever they are computed, so a
GPU draws for a whole vocabulary itself. (``uniforms`` of the calibration has 24 bits a number, too
few for Gumbel noise; LLaDA's sampler wants float64.) Source: Steele, Lea and Flood, Fast splittable
pseudorandom number generators, 2014.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BITS = 52
"""So many that the middle of every part is a float64."""
GAMMA, FIRST, SECOND = (
    constant - (1 << 64)  # as int64 holds them
    for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class Places(NamedTuple):
    """Open places of a step, each with what its noise depends on."""

    seeds: Sequence[int]
    """Of the row of each place."""
    positions: Sequence[int]
    """In its row."""
    step: int
    """Number of the step within the block that is being filled."""

    def draws(self, kind: str, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers for each place, ``f64[places, count]``.

        They are the middles of 2**52 equal parts of (0, 1): neither end is ever drawn.
        """
        rows = zip(self.seeds, self.positions, strict=True)
        keys = [_key(kind, seed, self.step, position) for seed, position in rows]
        found = splitmix(torch.tensor(keys, dtype=torch.int64, device=device), count)
        return _unsigned_shift(found, 64 - BITS).double().add_(0.5).mul_(2.0**-BITS)


def splitmix(keys: Tensor, count: int) -> Tensor:
    """The first ``count`` numbers of SplitMix64 from each of ``keys``, ``i64[rows, count]``."""
    number = torch.arange(1, count + 1, device=keys.device)
    found = keys[:, None] + number * GAMMA
    found = (found ^ _unsigned_shift(found, 30)).mul_(FIRST)
    found = (found ^ _unsigned_shift(found, 27)).mul_(SECOND)
    return found ^ _unsigned_shift(found, 31)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform numbers, in their shape."""
    return -torch.log(-torch.log(uniform))


def _unsigned_shift(numbers: Tensor, by: int) -> Tensor:
    return (numbers >> by).bitwise_and_((1 << (64 - by)) - 1)


def _key(*parts: str | int) -> int:
    name = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.shake_256(name).digest(8), "little", signed=True)
