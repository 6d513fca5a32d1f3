"""One buffer for expanded weights, shared by all layers of a device and dtype."""

import torch
from torch import Tensor

CHUNK_BYTES = 32 << 20
"""Of expanded weights at once: they should still be in the L2 cache when they are multiplied."""

_buffers: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}


def reserve(elements: int, dtype: torch.dtype, device: torch.device) -> None:
    """See to it that the buffer has at least so many elements.

    A smaller one that was there before stays: a captured CUDA graph may write to it.
    """
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    buffers = _buffers.setdefault((device, dtype), [])
    if not buffers or buffers[-1].numel() < elements:
        wanted = max(elements, CHUNK_BYTES // dtype.itemsize)
        buffers.append(torch.empty(wanted, dtype=dtype, device=device))


def dense_buffer(elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The buffer's first ``elements``, which the next caller overwrites."""
    reserve(elements, dtype, device)
    return _buffers[device, dtype][-1][:elements]
