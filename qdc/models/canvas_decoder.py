"""The decoder that writes on a canvas: Gemma's blocks, under DiffusionGemma's key names.

The published code has two stacks of one set of weights: an encoder reads the text causally, and a
decoder the canvas, which sees the keys of the text. Both are one pass here over text and canvas in
a row, by an attention that knows where the canvas begins; what differs otherwise, the embeddings
of the canvas and one number for each block, is taken by position. Source: transformers,
``models/diffusion_gemma``; it is traced and loaded as ``Decoder`` is.
"""

import math
from collections.abc import Mapping
from functools import cached_property, partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdc.errors import QdcError
from qdc.ir.parts import Part, stacked
from qdc.models.canvas import CanvasAttention, OnCanvas, Scalars, Signal, SoftCap, as_text
from qdc.models.canvas_sizes import CanvasSizes, HeadSizes
from qdc.models.experts import Expert, ScaledRouter, ScaledRouting
from qdc.models.layers import ProportionalRotary, RMSNorm, Rotary, embedding
from qdc.models.masks import read_mask
from qdc.models.network import Network
from qdc.models.places import at, put

GELU = partial(F.gelu, approximate="tanh")
TABLE_ROWS = 1 << 14
"""Rows of the embedding that are decoded at a time where a prediction is embedded."""
EMBEDDING, BLOCKS = "model.decoder.embed_tokens", "model.decoder.layers"
CONDITIONING, FINAL_NORM, HEAD = "model.decoder.self_conditioning", "model.decoder.norm", "lm_head"
TEXT = "model.encoder.language_model"
"""Where the published class has the same stack again, which reads the text."""
IMAGES = "of the part that reads images, which is not done here"


class GeluFeedForward(nn.Module):
    """The dense feed-forward, ``down(gelu(gate(x)) * up(x))``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width] -> [..., width]``."""
        found: Tensor = self.down_proj(GELU(self.gate_proj(x)) * self.up_proj(x))
        return found


class SelfConditioning(GeluFeedForward):
    """Adds what was predicted before to the embeddings of the canvas, and norms them."""

    def __init__(self, sizes: CanvasSizes) -> None:
        super().__init__(sizes.width, sizes.hidden)
        self.signal = Signal()
        self.pre_norm = RMSNorm(sizes.width, sizes.eps)
        self.post_norm = RMSNorm(sizes.width, sizes.eps, scaled=False)
        self.place = OnCanvas(sizes.canvas)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """``[batch, T, width]``, and the same of what was predicted before, or None."""
        added = super().forward(self.pre_norm(self.signal(x, before)))
        found: Tensor = self.place(x, self.post_norm(x + added))
        return found


class CanvasSelfAttention(nn.Module):
    """Attention with norms of heads and of values; without ``v_proj`` values are the keys."""

    def __init__(self, sizes: CanvasSizes, heads: HeadSizes) -> None:
        super().__init__()
        width, columns = sizes.width, heads.columns
        self.columns = columns
        inner, shared = sizes.heads * columns, heads.key_heads * columns
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(width, shared, bias=False)
        self.v_proj = nn.Linear(width, shared, bias=False) if heads.has_values else None
        self.o_proj = nn.Linear(inner, width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(columns, sizes.eps), RMSNorm(columns, sizes.eps)
        self.v_norm = RMSNorm(columns, sizes.eps, scaled=False)
        self.rotary = (
            Rotary(columns, heads.theta)
            if heads.turned is None
            else ProportionalRotary(columns, heads.theta, heads.turned)
        )
        self.attention = CanvasAttention(sizes.canvas, heads.past, scale=1.0)

    def forward(self, normed: Tensor, attention_mask: Tensor | None) -> Tensor:
        """``[batch, T, width] -> [batch, T, width]``."""
        query, key = self._heads(self.q_proj(normed)), self._heads(self.k_proj(normed))
        value = key if self.v_proj is None else self._heads(self.v_proj(normed))
        query, key = self.rotary(self.q_norm(query)), self.rotary(self.k_norm(key))
        mixed = self.attention(query, key, self.v_norm(value), attention_mask)
        found: Tensor = self.o_proj(mixed)
        return found

    def _heads(self, projected: Tensor) -> Tensor:
        shape = (-1, self.columns)
        heads: Tensor = projected.unflatten(-1, shape)  # type: ignore[no-untyped-call]
        return heads


class CanvasBlock(nn.Module):
    """One block: attention, then a dense feed-forward and experts side by side.

    Norms stand in front of each and behind each.
    """

    def __init__(self, sizes: CanvasSizes, index: int) -> None:
        super().__init__()
        width, eps, experts = sizes.width, sizes.eps, sizes.experts
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = CanvasSelfAttention(sizes, sizes.heads_of(index))
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.pre_feedforward_layernorm = RMSNorm(width, eps)
        self.mlp = GeluFeedForward(width, sizes.hidden)
        self.post_feedforward_layernorm_1 = RMSNorm(width, eps)
        self.router = ScaledRouter(width, experts, eps)
        self.routing = ScaledRouting(experts, sizes.experts_per_token)
        self.pre_feedforward_layernorm_2 = RMSNorm(width, eps)
        self.experts = nn.ModuleList(
            Expert(width, sizes.expert_hidden, number, activation=GELU) for number in range(experts)
        )
        self.post_feedforward_layernorm_2 = RMSNorm(width, eps)
        self.post_feedforward_layernorm = RMSNorm(width, eps)
        self.scalars = Scalars(sizes.canvas)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """``[batch, T, width] -> [batch, T, width]``."""
        mixed = self.self_attn(self.input_layernorm(hidden), attention_mask)
        hidden = hidden + self.post_attention_layernorm(mixed)
        dense = self.post_feedforward_layernorm_1(self.mlp(self.pre_feedforward_layernorm(hidden)))
        weights = self.routing(self.router(hidden))
        normed = self.pre_feedforward_layernorm_2(hidden)
        mixed = torch.zeros_like(normed)
        for expert in self.experts:
            mixed = expert(normed, weights, mixed)
        added = self.post_feedforward_layernorm(dense + self.post_feedforward_layernorm_2(mixed))
        found: Tensor = self.scalars(hidden + added)
        return found


class CanvasDecoder(Network):
    """The whole model."""

    left_out: ClassVar[Mapping[str, str]] = {
        "model.encoder.vision_tower.": IMAGES,
        "model.encoder.embed_vision.": IMAGES,
    }

    def __init__(self, sizes: CanvasSizes) -> None:
        """Build without weights."""
        super().__init__()
        self.sizes = sizes
        put(self, EMBEDDING, embedding(sizes.vocabulary, sizes.width))
        put(self, CONDITIONING, SelfConditioning(sizes))
        blocks = (CanvasBlock(sizes, index) for index in range(sizes.blocks))
        put(self, BLOCKS, nn.ModuleList(blocks))
        put(self, FINAL_NORM, RMSNorm(sizes.width, sizes.eps))
        head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        head.weight = at(self, EMBEDDING).get_parameter("weight")
        put(self, HEAD, head)
        self.soft_cap = SoftCap(sizes.cap)

    @property
    def canvas(self) -> int:
        """Columns of the canvas."""
        return self.sizes.canvas

    @cached_property
    def fused(self) -> dict[str, Part]:
        """Tensors that checkpoints hold under another name or in a stack, by name."""
        found: dict[str, Part] = {}
        hidden, width = self.sizes.expert_hidden, self.sizes.width
        for index in range(self.sizes.blocks):
            block = f"{BLOCKS}.{index}"
            found |= {
                f"{block}.router.weight": Part(f"{block}.router.proj.weight"),
                f"{block}.routing.per_expert_scale": Part(f"{block}.router.per_expert_scale"),
                f"{block}.scalars.canvas": Part(f"{block}.layer_scalar"),
                f"{block}.scalars.text": Part(f"{TEXT}.layers.{index}.layer_scalar"),
            }
            experts = [f"{block}.experts.{number}" for number in range(self.sizes.experts)]
            gates = {
                place: ((f"{e}.gate_proj.weight", hidden), (f"{e}.up_proj.weight", hidden))
                for place, e in enumerate(experts)
            }
            downs = {place: ((f"{e}.down_proj.weight", width),) for place, e in enumerate(experts)}
            found |= stacked(f"{block}.experts.gate_up_proj", gates)
            found |= stacked(f"{block}.experts.down_proj", downs)
        return found

    def alias(self, key: str) -> str:
        """The name of a tensor that a checkpoint may hold under the text's stack as well."""
        return key.replace(f"{TEXT}.", "model.decoder.", 1) if key.startswith(TEXT) else key

    def further_inputs(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """What it takes beside tokens and mask when it is traced: see ``signal_of``, on meta."""
        return (torch.zeros(batch, length, self.sizes.width, device="meta"),)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """Predict the tokens of the canvas, which are the last ones.

        Args:
            input_ids: ``i64[batch, T]``, text and canvas.
            attention_mask: ``[batch, T]``, 0 = padding; see ``read_mask`` for other masks.
            before: ``f32[batch, n, rows]``, logits of the last n columns as they were predicted
                one step before, over that step's temperature; None in the first step.

        Returns:
            ``f32[batch, T, rows]``, bent by the cap. Those of the text mean nothing.

        Raises:
            QdcError: ``before`` does not fit, or the mask is not taken.
        """
        if isinstance(input_ids, Tensor):  # values of a trace have no shape, and no values
            attention_mask = read_mask(attention_mask, input_ids, self.canvas)
            before = None if before is None else self.signal_of(before, input_ids)
        hidden = self._blocks(input_ids, attention_mask, before)
        logits: Tensor = self.soft_cap(at(self, HEAD)(at(self, FINAL_NORM)(hidden)))
        return logits

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Read text that has no canvas, as to keep its keys and values in a window.

        Args:
            input_ids: ``i64[batch, T]``.
            attention_mask: ``[batch, T]``, 0 = padding.

        Returns:
            ``[batch, T, width]``, normed: what the published encoder gives.
        """
        with as_text():
            mask = read_mask(attention_mask, input_ids, self.canvas)
            found: Tensor = at(self, FINAL_NORM)(self._blocks(input_ids, mask, None))
        return found

    def signal_of(self, before: Tensor, input_ids: Tensor) -> Tensor:
        """Embed predictions, ``f32[batch, n, rows] -> [batch, T, width]``; zeros before them.

        Each is the mean of all embeddings by its probabilities. Raises ``QdcError``.
        """
        (batch, length), (rows, width) = input_ids.shape, (self.sizes.vocabulary, self.sizes.width)
        shape = tuple(before.shape)
        most = min(length, self.canvas)
        if len(shape) != 3 or shape[::2] != (batch, rows) or not 0 < shape[1] <= most:
            raise QdcError(
                f"before is {list(shape)}, and the tokens are {[batch, length]}",
                help=f"give logits of the last tokens of the canvas, [{batch}, n, {rows}] with n "
                f"from 1 to {most}",
            )
        shares = before.to(input_ids.device, torch.float32).softmax(-1)
        found = torch.zeros(batch, length, width, device=input_ids.device)
        table = at(self, EMBEDDING)
        dtype = found.dtype
        for part in torch.split(torch.arange(rows, device=input_ids.device), TABLE_ROWS):
            embedded: Tensor = table(part)
            dtype = embedded.dtype
            found[:, -shape[1] :] += shares[..., part] @ embedded.float()
        return (found * math.sqrt(width)).to(dtype)

    def _blocks(
        self, input_ids: Tensor, attention_mask: Tensor | None, before: Tensor | None
    ) -> Tensor:
        hidden = at(self, EMBEDDING)(input_ids) * self.sizes.width**0.5
        hidden = at(self, CONDITIONING)(hidden, before)
        blocks = at(self, BLOCKS)
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            hidden = block(hidden, attention_mask)
        found: Tensor = hidden
        return found
