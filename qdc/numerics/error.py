"""How wrong the output of a quantized layer is."""

import torch
from torch import Tensor


def relative_output_error(weight: Tensor, dense: Tensor, moment: Tensor) -> float:
    """Squared output error as a share of the squared output (quant-dllm.md 2.2).

    tr(E M E^T) / tr(W M W^T) with E = W - Q and the undamped moment M, in fp64: compensation
    works by cancellation, which fp32 would blur.

    Args:
        weight: f32[n, m].
        dense: f32[n, m], quantized.
        moment: f32[m, m], second moment of the input.

    Returns:
        The share, not negative; 0 if neither the error nor the layer has an output, infinite if
        only the error has.
    """
    exact = weight.to(torch.float64)
    metric = moment.to(torch.float64)
    error = exact - dense.to(torch.float64)
    wrong = max(float(((error @ metric) * error).sum()), 0.0)
    whole = float(((exact @ metric) * exact).sum())
    if wrong == 0.0:
        return 0.0
    return wrong / whole if whole > 0 else float("inf")
