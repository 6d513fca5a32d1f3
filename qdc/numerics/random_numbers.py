"""Uniform numbers from a name: the same on every machine, in every version of torch.

torch seeds its CPU generator with 32 bits alone (seeds 1 and 1 + 2**32 give one stream), its CUDA
generator differs from it, and neither is promised to stay. Masks come from SHAKE-256 instead: a key
is hashed, and the hash goes on for as long as there are numbers to draw.
"""

import hashlib

import torch
from torch import Tensor


def uniforms(count: int, *key: str | int) -> Tensor:
    """Return ``f32[count]``, multiples of 2**-24 in [0, 1); unequal keys give unrelated numbers.

    A longer draw begins with the shorter one of the same key.
    """
    name = "\0".join(f"{type(part).__name__}:{part}" for part in key)
    data = bytearray(hashlib.shake_256(name.encode()).digest(3 * count))
    if not data:
        return torch.empty(0)
    high, middle, low = torch.frombuffer(data, dtype=torch.uint8).view(count, 3).int().unbind(1)
    return ((high << 16) + (middle << 8) + low).float() / 2**24


def below(bound: int, count: int, *key: str | int) -> list[int]:
    """Return ``count`` whole numbers in [0, bound), each as likely as any other up to 2**-48."""
    halves = (uniforms(2 * count, *key).double() * 2**24).long().view(count, 2).tolist()
    return [((high << 24) + low) * bound >> 48 for high, low in halves]


def permutation(count: int, *key: str | int) -> list[int]:
    """Return the numbers 0 .. ``count`` - 1 in random order."""
    drawn = below(1 << 48, count, *key)
    return sorted(range(count), key=drawn.__getitem__)
