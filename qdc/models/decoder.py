"""The one decoder, built for every family under its published key names.

What differs between families is data: ``Names``, the ``Sizes`` that a configuration gives, and a
few facts in a ``Layout``. The forward pass is free of shape arithmetic and of branches on values,
so plain ``torch.fx`` traces it; every tensor of the published checkpoints loads with
``strict=True``. Source: shared facts on the ecosystem (A.2, A.3, A.4).
"""

from typing import NamedTuple

from torch import Tensor, nn

from qdc.models.experts import Expert, Router, Routing
from qdc.models.layers import Attention, RMSNorm, Rotary, embedding
from qdc.models.masks import read_mask
from qdc.models.names import Names, free_name
from qdc.models.parts import FeedForward, Gated, Heads, Mixture, SelfAttention
from qdc.models.places import at, inside, put
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
        self.sizes, self.layout = sizes, layout
        names, sparse = layout.names, sizes.is_sparse(index)
        self._places = names.places(head_norms=sizes.head_norms, sparse=sparse)
        taken = names.block_names(head_norms=sizes.head_norms, sparse=sparse)
        put(self, names.attention_norm, RMSNorm(sizes.width, sizes.eps))
        self._attention = self._add_attention(self._places[0], taken)
        self._linear("output", sizes.query_columns, sizes.width)
        put(self, names.feed_forward_norm, RMSNorm(sizes.width, sizes.eps))
        self._feed_forward: Gated | Mixture
        if sparse:
            self._feed_forward = self._add_experts(self._places[1], taken)
        else:
            self._feed_forward = self._add_gated(self._places[1])

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """``[batch, T, width] -> [batch, T, width]``."""
        names, (attention, feed_forward) = self.layout.names, self._places
        normed = at(self, names.attention_norm)(hidden)
        if attention:
            mixed = at(self, attention)(normed, attention_mask)
        else:
            mixed = self._attention.run(self, normed, attention_mask)
        hidden = hidden + at(self, names.output)(mixed)
        normed = at(self, names.feed_forward_norm)(hidden)
        if feed_forward:
            added: Tensor = at(self, feed_forward)(normed)
        else:
            added = self._feed_forward.run(self, normed)
        return hidden + added

    def _add_attention(self, place: str, taken: tuple[str, ...]) -> Heads:
        """Add projections, norms of heads, and the leaves without weights."""
        sizes, names = self.sizes, self.layout.names
        rotary, attention = (free_name(place, leaf, taken) for leaf in ("rotary", "attention"))
        norms = (names.query_norm, names.key_norm) if sizes.head_norms else ()
        query_norm, key_norm = (inside(place, path) for path in norms or ("", ""))
        recipe = Heads(
            query=inside(place, names.query),
            key=inside(place, names.key),
            value=inside(place, names.value),
            query_norm=query_norm,
            key_norm=key_norm,
            rotary=inside(place, rotary),
            attention=inside(place, attention),
            columns=sizes.head_columns,
            early=self.layout.rotates_early,
        )
        if place:
            put(self, place, SelfAttention(recipe))
        self._linear("query", sizes.width, sizes.query_columns)
        self._linear("key", sizes.width, sizes.key_columns)
        self._linear("value", sizes.width, sizes.key_columns)
        for norm in norms:
            put(self, norm, RMSNorm(sizes.head_columns, sizes.eps))
        put(self, rotary, Rotary(sizes.head_columns, sizes.theta))
        put(self, attention, Attention(sizes.block))
        return recipe

    def _add_gated(self, place: str) -> Gated:
        """Add a dense feed-forward."""
        sizes, names = self.sizes, self.layout.names
        assert sizes.hidden is not None
        recipe = Gated(*(inside(place, path) for path in (names.gate, names.up, names.down)))
        if place:
            put(self, place, FeedForward(recipe))
        self._linear("gate", sizes.width, sizes.hidden)
        self._linear("up", sizes.width, sizes.hidden)
        self._linear("down", sizes.hidden, sizes.width)
        return recipe

    def _add_experts(self, place: str, taken: tuple[str, ...]) -> Mixture:
        """Add a router and its experts."""
        sizes, names = self.sizes, self.layout.names
        assert sizes.experts is not None
        assert sizes.expert_hidden is not None
        width, hidden = sizes.width, sizes.expert_hidden
        routing = free_name(place, "routing", taken)
        recipe = Mixture(*(inside(place, path) for path in (names.router, routing, names.experts)))
        if place:
            put(self, place, FeedForward(recipe))
        put(self, names.router, Router(width, sizes.experts, bias=False))
        normalized = bool(sizes.normalized)
        chosen = Routing(sizes.experts, sizes.experts_per_token, normalized=normalized)
        put(self, routing, chosen)
        inner = (names.expert_gate, names.expert_up, names.expert_down)
        experts = (Expert(width, hidden, number, names=inner) for number in range(sizes.experts))
        put(self, names.experts, nn.ModuleList(experts))
        return recipe

    def _linear(self, role: str, inputs: int, outputs: int) -> None:
        bias = role in self.layout.biases
        put(self, getattr(self.layout.names, role), nn.Linear(inputs, outputs, bias=bias))


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

        They are as the published code gives them, shifted where the layout says so. Further masks
        are those of ``read_mask``, which raises ``QdcError`` for what it does not take.
        """
        if isinstance(input_ids, Tensor):  # values of a trace have no shape, and no values
            attention_mask = read_mask(attention_mask, input_ids, self.sizes.block)
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
