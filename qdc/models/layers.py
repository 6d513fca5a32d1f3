"""The leaves of a traced transformer: the modules that the tracer does not look into.

Every own model implementation is made of these and of ``Linear`` and ``Embedding``; a leaf is one
node of the layer graph. What a leaf does with shapes or with an absent mask stays inside it, which
is what keeps the code around it traceable by plain ``torch.fx``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdc.models.asked import asked_of_last
from qdc.models.rotations import Frequencies
from qdc.models.window import Window, current_window


def embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding, ``[rows, width]``; on the meta device one that is not initialized.

    There, the normal distribution of ``nn.Embedding`` would import torch's compiler: more than a
    second for nothing.
    """
    weight = torch.empty(rows, width)
    return nn.Embedding(rows, width, _weight=weight if weight.is_meta else nn.init.normal_(weight))


class RMSNorm(nn.Module):
    """Root-mean-square norm: computed in fp32, cast back, then scaled by the weight, if it has one.

    Without a weight nothing is scaled.
    """

    weight: nn.Parameter | None

    def __init__(self, width: int, eps: float, *, scaled: bool = True) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.ones(width)) if scaled else None)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width] -> [..., width]`` in the dtype of ``x``."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        plain = wide.to(x.dtype)
        return plain if self.weight is None else self.weight * plain


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
        self.frequencies = Frequencies(theta, self.turned // 2, self.turned // 2)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, T, heads, head_width]``, rotated, in the dtype of ``x``."""
        window, each = current_window(), self.frequencies
        cosine, sine = each.of_text(x) if window is None else window.rotation(each, x.device)
        low, high = x[..., : self.turned].float().chunk(2, dim=-1)
        parts = (low * cosine - high * sine, high * cosine + low * sine)
        turned = torch.cat(parts, dim=-1).to(x.dtype)
        if self.turned == self.head_width:
            return turned
        return torch.cat((turned, x[..., self.turned :]), dim=-1)


class ProportionalRotary(Rotary):
    """Rotary position embedding that pairs the halves of a whole head and turns the first pairs.

    Frequencies are those of a rotation of the whole head; the further pairs stand still. Source:
    Gemma 4's ``proportional`` rotation.
    """

    def __init__(self, head_width: int, theta: float, share: float) -> None:
        """Choose; ``share`` is that of the pairs that are turned, at most 1."""
        super().__init__(head_width, theta)
        turning = int(share * head_width // 2)
        self.frequencies = self.frequencies._replace(turning=turning)


class Attention(nn.Module):
    """Attention core without a causal mask: padded keys hidden, grouped heads repeated.

    With a block length a position sees its own block and the blocks before it; without one it sees
    every position. Blocks are counted from the first position, padding included, unless a window is
    in force: then positions, padding and further keys are the window's.
    """

    scale: float | None = None
    """What scores are multiplied with; None for one over the root of a head's width."""

    def __init__(self, block: int | None = None) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None
    ) -> Tensor:
        """``[batch, T, heads, head_width]`` each, mask ``[batch, T]`` (0 hides) or of four axes.

        Returns:
            ``[batch, T, width]``; in the last block the positions asked for, those of a row side by
            side (``asked.last``).
        """
        window, asked = current_window(), asked_of_last()
        if window is None:
            visible = self.visible(query, attention_mask)
        else:
            key, value = window.extend(self, key, value)
            visible = self.visible_in(window)
        if asked is not None:
            query, visible = asked.narrow(query), asked.narrow_sight(visible)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=visible,
            scale=self.scale,
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

    def visible_in(self, window: Window) -> Tensor | None:
        """The same while a window is in force, ``bool[batch or 1, 1, columns or 1, seen]``."""
        return window.mask(self.block)


def takes_windows(model: object) -> bool:
    """Whether a model is made of leaves that ask for the window in force.

    What ``torch.compile`` has taken, as a whole or in parts, no longer asks.
    """
    if not isinstance(model, nn.Module) or any(map(_is_compiled, model.modules())):
        return False
    return any(isinstance(part, Attention) for part in model.modules())


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
