"""Mask geometries: which tokens of a clean sample the model does not see.

Each function takes clean windows and the places that may be masked at all (no prompt, no prefix),
and returns the windows with the mask token, and the mask. A sample's time is the share of those
places that is masked, from 1 (all of them) down to 0 (none). Numbers are drawn on the CPU, from a
key of seed and index.
"""

import torch
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.numerics.random_numbers import uniforms

Masked = tuple[Tensor, Tensor]
"""``i64[N, length]`` with the mask token in it, and ``bool[N, length]``: where."""


def grid(count: int, *, clean_copy: bool = False) -> Tensor:
    """Return ``count`` even times, ``f32[count]``: ``1/n .. 1``, or ``0 .. 1`` with the clean end.

    Source: the release has no clean state; the figure of the paper shows one (specification 2.9).
    """
    if not clean_copy:
        return torch.arange(1, count + 1) / count
    if count < 2:
        raise InvalidCalibration(
            f"found {count} time, need 2 for the clean copy and a masked one",
            help="raise samples or timesteps, or leave clean-copy out",
        )
    return torch.arange(count) / (count - 1)


def stratified(count: int, *key: str | int) -> Tensor:
    """Return ``f32[count]`` times, number i uniform in ``[i/count, (i + 1)/count)``."""
    return (torch.arange(count) + uniforms(count, "calibration time", *key)) / count


def behind_prefix(samples: int, length: int, prefix: float) -> Tensor:
    """Return ``bool[samples, length]``, true behind the first ``floor(prefix * length)`` places."""
    return (torch.arange(length) >= int(prefix * length)).expand(samples, length)


def scattered(clean: Tensor, maskable: Tensor, times: Tensor, mask_id: int, seed: int) -> Masked:
    """Mask each place independently, with the probability of its sample's time.

    The geometries ``mcs`` (on a grid of times, behind a prefix) and ``uniform`` (random times, the
    whole window). Source: Quant-dLLM, Masked Calibration Simulation; LLaDA's forward process.
    """
    masked = (_draws(clean, seed) < times[:, None]) & maskable
    return clean.masked_fill(masked, mask_id), masked


def block_diffusion(
    clean: Tensor,
    maskable: Tensor,
    times: Tensor,
    mask_id: int,
    seed: int,
    block_length: int,
    *,
    aligned: bool = False,
) -> Masked:
    """Mask as a sampler that goes block by block: one block in work, all later ones masked.

    The maskable places of a sample are cut into blocks of ``block_length``. A time of t leaves
    t * blocks of them to do: all but the first of these are masked whole, the first one, place by
    place, with the probability that remains of the last whole number. With ``aligned`` blocks are
    counted from the beginning of the sample, as attention by blocks does, and those that have no
    maskable place count for nothing.
    """
    if aligned:
        number = (torch.arange(clean.shape[1]) // block_length).expand(clean.shape)
        has = torch.zeros(len(clean), int(number.max()) + 1, dtype=torch.int64)
        has.scatter_reduce_(1, number, maskable.long(), reduce="amax")
        block = (has.cumsum(1) - 1).gather(1, number)
        blocks = has.sum(1, keepdim=True)
    else:
        rank = maskable.long().cumsum(1) - 1
        block = rank.div(block_length, rounding_mode="floor")
        blocks = (maskable.sum(1, keepdim=True) / block_length).ceil()
    left = times[:, None].double() * blocks
    current = blocks - left.ceil()
    within = left - (left.ceil() - 1)
    drawn = (block == current) & (_draws(clean, seed) < within)
    masked = (drawn | (block > current)) & maskable
    return clean.masked_fill(masked, mask_id), masked


def behind_work(masked: Tensor, block_length: int) -> Tensor:
    """Which places lie in blocks behind the first one with a mask in it, ``bool[N, length]``.

    Args:
        masked: ``bool[N, length]``.
        block_length: of blocks that are counted from the beginning of a sample.
    """
    number = torch.arange(masked.shape[1]) // block_length
    beyond = int(number[-1]) + 1
    current = torch.where(masked, number, beyond).amin(1, keepdim=True)
    return number > current


def unmasked(clean: Tensor) -> Masked:
    """Mask nothing: what calibration for autoregressive models does, kept for comparison."""
    return clean.clone(), torch.zeros_like(clean, dtype=torch.bool)


def _draws(clean: Tensor, seed: int) -> Tensor:
    samples, length = clean.shape
    rows = [uniforms(length, "calibration mask", seed, index) for index in range(samples)]
    return torch.stack(rows)
