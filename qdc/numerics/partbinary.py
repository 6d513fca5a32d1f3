"""How the binary part of a block is fitted: row means and scales, or row and column scales.

Each fit sees the elements of its part alone. ``residual`` is BiLLM's closed form, ``alternate`` and
``row_column`` are those of ARB and ARB-RC, ``metric_refit`` is that of ARB-X. Source:
related-systems.md 7 and 9; arXiv 2402.04291, 2410.03129.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from qdc.numerics.components import Components
from qdc.numerics.multibinary import refit_scales, search_signs
from qdc.numerics.rounding import nearest_signs


class PartFit(NamedTuple):
    """Elements of a part as mean + sum over k of row_scale_k col_scale_k sign_k.

    Attributes:
        mean: f32[n]; zeros in the form without means.
        components: Signs everywhere in the block; those outside the part mean nothing. Column
            scales are 1 in the form with means.
    """

    mean: Tensor
    components: Components


def residual(values: Tensor, mask: Tensor, order: int) -> tuple[PartFit, Tensor]:
    """Binarise about the mean of each row, then what is left, ``order`` times.

    The means of all orders are added up: only their sum is stored.

    Args:
        values: f32[n, g].
        mask: f32[n, g], 1 for elements of the part, 0 for others.
        order: Number of components.

    Returns:
        The fit, and its squared error over the part, f64.
    """
    count = mask.sum(1, keepdim=True).clamp(min=1)
    rest, mean = values * mask, torch.zeros_like(count)
    signs, scales = [], []
    for _ in range(order):
        shift = rest.sum(1, keepdim=True) / count
        rest = (rest - shift) * mask
        scale = rest.abs().sum(1, keepdim=True) / count
        sign = torch.where(rest >= 0, 1.0, -1.0)
        rest = (rest - scale * sign) * mask
        mean = mean + shift
        signs.append(sign)
        scales.append(scale[:, 0])
    ones = torch.ones(order, values.shape[1], device=values.device)
    components = Components(torch.stack(signs).to(torch.int8), torch.stack(scales), ones)
    return PartFit(mean[:, 0], components), rest.square().sum(dtype=torch.float64)


def residual_error(values: Tensor, mask: Tensor, order: int) -> Tensor:
    """The error of ``residual`` alone, f64: quick enough to be tried many times.

    A component's scale is the mean magnitude of what it is fitted to, so it takes n scale^2 off
    the sum of squares, and no sign is needed for the last.
    """
    count = mask.sum(1, keepdim=True).clamp(min=1)
    rest = values * mask
    for turn in range(order):
        rest = (rest - rest.sum(1, keepdim=True) / count) * mask
        scale = rest.abs().sum(1, keepdim=True) / count
        if turn < order - 1:
            rest = (rest - scale * torch.where(rest >= 0, 1.0, -1.0)) * mask
    gain = (count * scale.square()).sum(dtype=torch.float64)
    return rest.square().sum(dtype=torch.float64) - gain


def alternate(values: Tensor, mask: Tensor, start: PartFit, sweeps: int) -> PartFit:
    """Refit mean, scales and signs of each row in turn (ARB); no step raises the error.

    Args:
        values: f32[n, g].
        mask: f32[n, g] of 0 and 1.
        start: With column scales of 1.
        sweeps: How often.
    """
    count = mask.sum(1).clamp(min=1)
    mean, (signs, scales, ones) = start.mean, start.components
    signs = signs.to(values.dtype)
    for _ in range(sweeps):
        written = torch.einsum("kn,kng->ng", scales, signs)
        mean = ((values - written) * mask).sum(1) / count
        centred = values - mean[:, None]
        scales = scales.clone()
        for k in range(len(scales)):
            others = written - scales[k, :, None] * signs[k]
            scales[k] = ((centred - others) * signs[k] * mask).sum(1) / count
            written = others + scales[k, :, None] * signs[k]
        signs = _nearest(centred, scales, ones)
    return PartFit(mean, Components(signs.to(torch.int8), scales, ones))


def row_column_start(values: Tensor, mask: Tensor, order: int) -> tuple[PartFit, Tensor]:
    """Row scales by mean magnitude, column scales by what is left of it, one order after the other.

    Args:
        values: f32[n, g].
        mask: f32[n, g] of 0 and 1.
        order: Number of components.

    Returns:
        The fit, and its squared error over the part, f64.
    """
    rows, columns = (mask.sum(d, keepdim=True).clamp(min=1) for d in (1, 0))
    rest = values * mask
    parts = []
    for _ in range(order):
        magnitude = rest.abs()
        row = magnitude.sum(1, keepdim=True) / rows
        column = (magnitude / torch.where(row > 0, row, 1.0)).sum(0, keepdim=True) / columns
        sign = torch.where(rest >= 0, 1.0, -1.0)
        rest = (rest - row * column * sign) * mask
        parts.append((sign.to(torch.int8), row[:, 0], column[0]))
    signs, row_scale, col_scale = (torch.stack(kind) for kind in zip(*parts, strict=True))
    mean = torch.zeros(len(values), device=values.device)
    fit = PartFit(mean, Components(signs, row_scale, col_scale))
    return fit, rest.square().sum(dtype=torch.float64)


def row_column_error(values: Tensor, mask: Tensor, order: int) -> Tensor:
    """The error of ``row_column_start``, f64."""
    return row_column_start(values, mask, order)[1]


def row_column(values: Tensor, mask: Tensor, order: int, sweeps: int) -> PartFit:
    """Refit row and column scales in turn, from order 2 on the signs too (ARB-RC)."""
    start, _ = row_column_start(values, mask, order)
    components = start.components
    for _ in range(sweeps):
        components = refit_scales(values, components, mask)
        if order > 1:
            components = search_signs(values, components)
    return start._replace(components=components)


def metric_refit(
    values: Tensor, mask: Tensor, fit: PartFit, metric: Tensor, sweeps: int
) -> PartFit:
    """Refit mean and scales in turn in a metric, signs fixed, the part by itself (ARB-X).

    Args:
        values: f32[n, g].
        mask: f32[n, g] of 0 and 1.
        fit: With column scales of 1.
        metric: f32[g, g], second moment of the block's inputs.
        sweeps: How often.
    """
    signs = fit.components.signs.to(values.dtype)
    basis = (torch.cat([torch.ones_like(signs[:1]), signs]) * mask).transpose(0, 1).double()
    weighted = basis @ metric.double()
    system = weighted @ basis.transpose(1, 2)
    right = (weighted @ (values * mask).double()[:, :, None])[:, :, 0]
    found = torch.cat([fit.mean[None], fit.components.row_scale]).T.double()
    for _ in range(sweeps):
        for k in range(found.shape[1]):
            energy = system[:, k, k]
            gain = right[:, k] - (system[:, k] * found).sum(1)
            found[:, k] += torch.where(energy > 0, gain / energy.clamp(min=1e-300), 0.0)
    mean, *scales = found.to(values.dtype).unbind(1)
    return PartFit(mean, fit.components._replace(row_scale=torch.stack(scales)))


def _nearest(target: Tensor, scales: Tensor, columns: Tensor) -> Tensor:
    """Signs f32[K, n, g] of the level nearest to each number of ``target`` f32[n, g]."""
    return nearest_signs(target[:, None], scales[:, :, None], columns[:, None])[:, :, 0]
