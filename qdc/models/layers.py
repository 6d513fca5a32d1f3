"""The leaves of a traced transformer: the modules that the tracer does not look into.

Every own model implementation is made of these and of ``Linear`` and ``Embedding``; a leaf is one
node of the layer graph. What a leaf does with shapes or with an absent mask stays inside it, which
is what keeps the code around it traceable by plain ``torch.fx``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdc.models.window import current_window


def embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding, ``[rows, width]``; on the meta device one that is not initialized.

    There, the normal distribution of ``nn.Embedding`` would import torch's compiler: more than a
    second for nothing.
    """
    weight = torch.empty(rows, width)
    return nn.Embedding(rows, width, _weight=weight if weight.is_meta else nn.init.normal_(weight))


class RMSNorm(nn.Module):
    """Root-mean-square norm: computed in fp32, cast back, then scaled by the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width] -> [..., width]`` in the dtype of ``x``."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Rotary(nn.Module):
    """Rotary position embedding, half-split, evaluated in fp32.

    Positions are 0..T-1, or those of the window in force. Where it turns the first columns of a
    head alone, their own halves are paired, and the others stay as they are.
    """

    def __init__(self, head_width: int, theta: float, turned: int | None = None) -> None:
        """Choose; ``turned`` are the columns that are rotated, all of a head if not given."""
        super().__init__()
        self.head_width = head_width
        self.theta = theta
        self.turned = head_width if turned is None else turned

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, T, heads, head_width]``, rotated, in the dtype of ``x``."""
        half = self.turned // 2
        exponent = torch.arange(half, device=x.device, dtype=torch.float32) / half
        window = current_window()
        if window is None:
            places = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
        else:
            places = window.places().to(x.device, torch.float32)
        angles = places[..., None] * self.theta**-exponent
        cosine, sine = angles.cos()[..., None, :], angles.sin()[..., None, :]
        low, high = x[..., : self.turned].float().chunk(2, dim=-1)
        parts = (low * cosine - high * sine, high * cosine + low * sine)
        turned = torch.cat(parts, dim=-1).to(x.dtype)
        if self.turned == self.head_width:
            return turned
        return torch.cat((turned, x[..., self.turned :]), dim=-1)


class Attention(nn.Module):
    """Attention core without a causal mask: padded keys hidden, grouped heads repeated.

    With a block length a position sees its own block and the blocks before it; without one it sees
    every position. Blocks are counted from the first position, padding included, unless a window is
    in force: then positions, padding and further keys are the window's.
    """

    def __init__(self, block: int | None = None) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None
    ) -> Tensor:
        """``[batch, T, heads, head_width]`` each, mask ``[batch, T]`` (0 hides) or of four axes.

        Returns:
            ``[batch, T, width]``.
        """
        window = current_window()
        if window is None:
            visible = self.visible(query, attention_mask)
        else:
            key, value = window.extend(self, key, value)
            visible = window.mask(self.block)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=visible,
            enable_gqa=key.shape[2] != query.shape[2],
        )
        return mixed.transpose(1, 2).flatten(2)

    def visible(self, query: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Who sees whom, ``bool[batch or 1, 1, T or 1, T]``; None where all see all.

        A mask of four axes says so itself (``masks.read_mask``).
        """
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask
        padding = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        if self.block is None:
            return padding
        number = torch.arange(query.shape[1], device=query.device) // self.block
        earlier = number[:, None] >= number[None, :]
        return earlier[None, None] if padding is None else earlier & padding


def takes_windows(model: object) -> bool:
    """Whether a model is made of leaves that ask for the window in force.

    What ``torch.compile`` has taken, as a whole or in parts, no longer asks.
    """
    if not isinstance(model, nn.Module) or any(map(_is_compiled, model.modules())):
        return False
    return any(isinstance(part, Attention) for part in model.modules())


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
