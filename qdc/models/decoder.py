"""The one decoder, built for every family under its published key names.

What differs between families is data: ``Names``, the ``Sizes`` that a configuration gives, and a
few facts in a ``Layout``. The forward pass is free of shape arithmetic and of branches on values,
so plain ``torch.fx`` traces it; every tensor of the published checkpoints loads with
``strict=True``. Source: shared facts on the ecosystem (A.2, A.3, A.4).
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from qdc.models.experts import Expert, Router, Routing, mix
from qdc.models.layers import Attention, RMSNorm, Rotary, embedding
from qdc.models.names import Names, free_name
from qdc.models.places import at, put, within
from qdc.models.sizes import Sizes


class Layout(NamedTuple):
    """What a family fixes about its decoder, whatever its configuration says."""

    names: Names = Names()
    biases: tuple[str, ...] = ()
    """Which projections have biases, by their fields of ``Names``."""
    rotates_early: bool = False
    """Whether queries are rotated before keys are computed. The result is the same; what follows
    what in the layer graph is not."""
    logits_shift: int = 0
    """1 if position i of the logits predicts token i + 1."""


BIASED = ("query", "key", "value", "output", "gate", "up", "down")
"""Projections that may have biases."""


class DecoderBlock(nn.Module):
    """One transformer block: attention, then a feed-forward, both on the residual stream."""

    def __init__(self, sizes: Sizes, layout: Layout, index: int) -> None:
        super().__init__()
        self.sizes, self.layout, self.sparse = sizes, layout, sizes.is_sparse(index)
        names = layout.names
        attention = names.attention_names(head_norms=sizes.head_norms)
        taken = (*attention, *names.feed_forward_names(sparse=self.sparse))
        self.rotary_name = free_name(names.attention_place, "rotary", taken)
        self.attention_name = free_name(names.attention_place, "attention", taken)
        self.routing_name = free_name(names.experts_place, "routing", taken)
        put(self, names.attention_norm, RMSNorm(sizes.width, sizes.eps))
        self._linear("query", sizes.width, sizes.query_columns)
        self._linear("key", sizes.width, sizes.key_columns)
        self._linear("value", sizes.width, sizes.key_columns)
        if sizes.head_norms:
            put(self, names.query_norm, RMSNorm(sizes.head_columns, sizes.eps))
            put(self, names.key_norm, RMSNorm(sizes.head_columns, sizes.eps))
        put(self, self.rotary_name, Rotary(sizes.head_columns, sizes.theta))
        put(self, self.attention_name, Attention(sizes.block))
        self._linear("output", sizes.query_columns, sizes.width)
        put(self, names.feed_forward_norm, RMSNorm(sizes.width, sizes.eps))
        if self.sparse:
            self._add_experts()
        else:
            assert sizes.hidden is not None
            self._linear("gate", sizes.width, sizes.hidden)
            self._linear("up", sizes.width, sizes.hidden)
            self._linear("down", sizes.hidden, sizes.width)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """``[batch, T, width] -> [batch, T, width]``."""
        names = self.layout.names
        normed = at(self, names.attention_norm)(hidden)
        mixed = within(self, names.attention_place, self._attend, normed, attention_mask)
        added: Tensor = at(self, names.output)(mixed)
        hidden = hidden + added
        normed = at(self, names.feed_forward_norm)(hidden)
        if self.sparse:
            return hidden + within(self, names.experts_place, self._mix, normed)
        gated = within(self, names.gate_place, self._gated, normed)
        added = at(self, names.down)(gated)
        return hidden + added

    def _attend(self, normed: Tensor, attention_mask: Tensor | None) -> Tensor:
        """``[batch, T, width]`` to the heads' results side by side."""
        names = self.layout.names
        if self.layout.rotates_early:
            query = self._turned(self._heads(names.query, normed), names.query_norm)
            key = self._turned(self._heads(names.key, normed), names.key_norm)
            value = self._heads(names.value, normed)
        else:
            query, key, value = (
                self._heads(name, normed) for name in (names.query, names.key, names.value)
            )
            if self.sizes.head_norms:
                query, key = at(self, names.query_norm)(query), at(self, names.key_norm)(key)
            rotary = at(self, self.rotary_name)
            query, key = rotary(query), rotary(key)
        mixed: Tensor = at(self, self.attention_name)(query, key, value, attention_mask)
        return mixed

    def _heads(self, name: str, normed: Tensor) -> Tensor:
        """What a projection gives, ``[batch, T, heads, head_columns]``."""
        projected: Tensor = at(self, name)(normed)
        shape = (-1, self.sizes.head_columns)
        heads: Tensor = projected.unflatten(-1, shape)  # type: ignore[no-untyped-call]
        return heads

    def _turned(self, heads: Tensor, norm: str) -> Tensor:
        """Normed where the family does, then rotated."""
        if self.sizes.head_norms:
            heads = at(self, norm)(heads)
        turned: Tensor = at(self, self.rotary_name)(heads)
        return turned

    def _gated(self, normed: Tensor) -> Tensor:
        """``silu(gate(x)) * up(x)``, which ``down`` takes."""
        names = self.layout.names
        product: Tensor = F.silu(at(self, names.gate)(normed)) * at(self, names.up)(normed)
        return product

    def _mix(self, normed: Tensor) -> Tensor:
        names = self.layout.names
        experts = at(self, names.experts)
        assert isinstance(experts, nn.ModuleList)
        return mix(at(self, names.router), at(self, self.routing_name), experts, normed)

    def _linear(self, role: str, inputs: int, outputs: int) -> None:
        bias = role in self.layout.biases
        put(self, getattr(self.layout.names, role), nn.Linear(inputs, outputs, bias=bias))

    def _add_experts(self) -> None:
        sizes, names = self.sizes, self.layout.names
        assert sizes.experts is not None
        assert sizes.expert_hidden is not None
        width, hidden = sizes.width, sizes.expert_hidden
        put(self, names.router, Router(width, sizes.experts, bias=False))
        normalized = bool(sizes.normalized)
        routing = Routing(sizes.experts, sizes.experts_per_token, normalized=normalized)
        put(self, self.routing_name, routing)
        inner = (names.expert_gate, names.expert_up, names.expert_down)
        experts = (Expert(width, hidden, number, names=inner) for number in range(sizes.experts))
        put(self, names.experts, nn.ModuleList(experts))


class Decoder(nn.Module):
    """The whole model, under the published key names."""

    def __init__(self, sizes: Sizes, layout: Layout) -> None:
        """Build without weights."""
        super().__init__()
        self.sizes, self.layout, self.logits_shift = sizes, layout, layout.logits_shift
        names = layout.names
        put(self, names.embedding, embedding(sizes.rows, sizes.width))
        blocks = (DecoderBlock(sizes, layout, index) for index in range(sizes.blocks))
        put(self, names.blocks, nn.ModuleList(blocks))
        put(self, names.final_norm, RMSNorm(sizes.width, sizes.eps))
        head = nn.Linear(sizes.width, sizes.rows, bias=False)
        if sizes.tied:
            head.weight = at(self, names.embedding).get_parameter("weight")
        put(self, names.head, head)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """``i64[batch, T]``, mask ``[batch, T]`` (0 = padding) ``-> [batch, T, rows]`` logits.

        They are as the published code gives them, shifted where the layout says so.
        """
        return predict(self, self.layout.names, input_ids, attention_mask)


def predict(
    model: nn.Module, names: Names, input_ids: Tensor, attention_mask: Tensor | None
) -> Tensor:
    """What a decoder computes, by whatever module holds its parts under these names."""
    hidden = at(model, names.embedding)(input_ids)
    blocks = at(model, names.blocks)
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        hidden = block(hidden, attention_mask)
    logits: Tensor = at(model, names.head)(at(model, names.final_norm)(hidden))
    return logits
