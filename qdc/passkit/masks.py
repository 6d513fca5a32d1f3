"""Masked Calibration Simulation (MCS): each sample is seen at one time of the diffusion process.

Source: Quant-dLLM (paper and release, specification 1.3). Of N samples, number i is corrupted at
time (i + 1) / N; a visible prefix stands for the prompt. Unlike the release, the numbers are drawn
on the CPU from a key of seed and index, so that no two seeds share a mask.
"""

import math

import torch
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.numerics.random_numbers import uniforms


def times(samples: int) -> Tensor:
    """Return the time of each sample, ``f32[samples]``: ``1/N, 2/N, ..., 1``."""
    if samples < 1:
        raise InvalidCalibration(
            f"found {samples} samples, need at least 1", help="raise the number of samples"
        )
    return torch.arange(1, samples + 1) / samples


def draw_mask(index: int, samples: int, length: int, prefix: float, seed: int) -> Tensor:
    """Return ``bool[length]``, true where sample ``index`` is masked.

    The first ``floor(prefix * length)`` positions stay visible; each other one is masked with the
    probability of the sample's time, independently.
    """
    if not 0 <= prefix < 1:
        raise InvalidCalibration(
            f"found prefix {prefix:g}, need a share of at least 0 and below 1",
            help="0.25 keeps the first quarter of each sample visible",
        )
    if not 0 <= index < samples:
        raise InvalidCalibration(
            f"found index {index}, need one of 0 to {samples - 1}", help="count samples from 0"
        )
    masked = uniforms(length, "calibration mask", seed, index) < times(samples)[index]
    masked[: math.floor(prefix * length)] = False
    return masked


def mask_windows(windows: Tensor, mask_id: int, prefix: float, seed: int) -> tuple[Tensor, Tensor]:
    """Corrupt clean windows ``i64[N, length]``, row i at time ``(i + 1) / N``.

    Returns the samples ``i64[N, length]``, with ``mask_id`` in the masked places, and the mask
    ``bool[N, length]``. A row may be left without a mask where its time is short.
    """
    samples, length = windows.shape
    if not samples:
        raise InvalidCalibration("found no sample to mask", help="raise the number of samples")
    masked = torch.stack([draw_mask(i, samples, length, prefix, seed) for i in range(samples)])
    return windows.masked_fill(masked, mask_id), masked
