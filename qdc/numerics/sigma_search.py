"""The search for the parameters of a sigma-delta modulator, on a sample of one layer's weights.

Source: related-systems.md 1 and 18 (SDQ-LLM, arXiv 2510.03275).
"""

from itertools import product
from typing import Final

import torch
from torch import Tensor

from qdc.numerics.resampling import downsampling
from qdc.numerics.sigma_delta import Shape, SigmaDelta, row_quantile, stored

SD_SCALES: Final = tuple(0.75 + 0.05 * step for step in range(6))
P_SCALES: Final = tuple(0.75 + 0.025 * step for step in range(10))
P_CUTS: Final = tuple(0.35 + 0.05 * step for step in range(6))


def search_shape(code: SigmaDelta, blocks: Tensor) -> tuple[Shape, float]:
    """Try a grid of parameters and keep the best by squared error; the first of equal ones.

    Args:
        code: Its rotation, rate and levels.
        blocks: f32[n, width], rows of blocks.

    Returns:
        The parameters, and their squared error as a share of the squares of ``blocks``, 0 if
        those are 0. A binary code has no cut; the one returned is the default.

    Raises:
        OverflowError: A scale or mean does not fit fp16.
    """
    centred, mean = code.sampled(blocks)
    wanted = code.rotation.forward(blocks) - mean[:, None]  # the mean is resampled as it is
    down = downsampling(code.width, code.length).float().to(blocks.device)
    sizes = centred.abs()
    usual = Shape()
    shares = (usual.p_cut,) if code.levels == "binary" else P_CUTS
    cuts = torch.cat([row_quantile(sizes, share) for share in shares])
    repeated = centred.repeat(len(shares), 1)
    best, least = usual, torch.inf
    for p_scale, sd_scale in product(P_SCALES, SD_SCALES):
        scale = stored(row_quantile(sizes, p_scale) * sd_scale).repeat(len(shares))
        codes = code.coded(repeated, mean, scale, cuts).codes
        written = (codes.float() @ down * scale[:, None]).view(len(shares), *wanted.shape)
        errors = (written - wanted).square().sum((1, 2), dtype=torch.float64).tolist()
        for p_cut, error in zip(shares, errors, strict=True):
            if error < least:
                best, least = Shape(round(sd_scale, 3), round(p_scale, 3), round(p_cut, 3)), error
    total = float(blocks.square().sum(dtype=torch.float64))
    return best, least / total if total else 0.0
