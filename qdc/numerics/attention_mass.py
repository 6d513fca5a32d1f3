"""How much attention each token gets: what an error in its value counts.

Source: related-systems.md 4, the interaction-aware quantization of DLLMQuant (arXiv 2508.14090).
"""

import math
from typing import Final

import torch
from torch import Tensor

AT_ONCE: Final = 1 << 24
"""Weights of attention that are held together."""


def attention_mass(
    query: Tensor, key: Tensor, segments: Tensor | None = None, block: int | None = None
) -> Tensor:
    """Add up softmax weights over heads and queries.

    Args:
        query: f32[b, T, heads, width].
        key: f32[b, T, key heads, width]; each serves equally many heads in a row.
        segments: i64[b, T]; positions see those of their own segment alone. None: all see all.
        block: positions of a block, of which later ones are not seen; None where all see all.

    Returns:
        f32[b, T]; over a sample it sums up to heads times positions.
    """
    batch, length, heads, width = query.shape
    repeated = key.repeat_interleave(heads // key.shape[2], dim=2)
    found = query.new_zeros(batch, length)
    number = torch.arange(length, device=query.device) // (block or length)
    many = max(1, AT_ONCE // (heads * length))
    for sample in range(batch):
        keys = repeated[sample].permute(1, 2, 0)
        for start in range(0, length, many):
            rows = slice(start, start + many)
            scores = query[sample, rows].transpose(0, 1) @ keys / math.sqrt(width)
            seen = number[rows, None] >= number[None, :]
            if segments is not None:
                each = segments[sample].to(query.device)
                seen = seen & (each[rows, None] == each[None, :])
            found[sample] += scores.masked_fill(~seen, -torch.inf).softmax(-1).sum((0, 1))
    return found
