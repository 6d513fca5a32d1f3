"""The loss of a layer that is a scale times a matrix of codes, and the best such scale."""

import torch
from torch import Tensor


def output_loss(weight: Tensor, dense: Tensor, moment: Tensor) -> float:
    """Compute tr(E M E^T) with E = W - Q, the sum in fp64.

    Args:
        weight: f32[n, m], W.
        dense: f32[n, m], Q.
        moment: f32[m, m], M.
    """
    error = weight - dense
    return float(((error @ moment) * error).sum(dtype=torch.float64))


def best_scale(weight: Tensor, dense: Tensor, moment: Tensor, scale: Tensor) -> Tensor:
    """Find the scale that would give ``dense``, made with ``scale``, the least loss; as stored.

    Args:
        weight: f32[n, m].
        dense: f32[n, m].
        moment: f32[m, m].
        scale: f32 scalar; 0 stays 0.

    Raises:
        OverflowError: If the scale does not fit fp16.
    """
    if not scale > 0:
        return scale
    seen = dense @ moment
    share = (seen * weight).sum(dtype=torch.float64) / (seen * dense).sum(dtype=torch.float64)
    return stored_scale(scale * share.float())


def stored_scale(scale: Tensor) -> Tensor:
    """A scale as fp16 holds it, in fp32. Raises ``OverflowError`` if it is too large."""
    found = scale.half().float()
    if not bool(found.isfinite()):
        raise OverflowError("the scale of the layer does not fit fp16")
    return found
