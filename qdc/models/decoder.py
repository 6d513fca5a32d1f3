"""The one decoder, built for every family under its published key names.

What differs between families is data: ``Names``, the ``Sizes`` that a configuration gives, and a
few facts in a ``Layout``. The forward pass is free of shape arithmetic and of branches on values,
so plain ``torch.fx`` traces it; every tensor of the published checkpoints loads with
``strict=True``. Source: shared facts on the ecosystem (A.2, A.3, A.4).
"""

from itertools import accumulate, pairwise
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from qdc.ir.parts import Part
from qdc.models.asked import asked_of_last, current_asked, last
from qdc.models.experts import BiasedRouter, Expert, GroupedRouting, Router, Routing
from qdc.models.layers import Attention, RMSNorm, Rotary, embedding
from qdc.models.masks import read_mask
from qdc.models.names import Names, free_name
from qdc.models.network import Network
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
        kind = {"head_norms": sizes.head_norms, "sparse": sparse, "shared": sizes.shared_hidden > 0}
        self._places = names.places(**kind)
        taken = names.block_names(**kind)
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
        """``[batch, T, width] -> [batch, T, width]``; of the last block, see ``asked.last``."""
        names, (attention, feed_forward) = self.layout.names, self._places
        normed = at(self, names.attention_norm)(hidden)
        if attention:
            mixed = at(self, attention)(normed, attention_mask)
        else:
            mixed = self._attention.run(self, normed, attention_mask)
        asked = asked_of_last()
        hidden = hidden if asked is None else asked.narrow(hidden)
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
        put(self, rotary, Rotary(sizes.head_columns, sizes.theta, sizes.rotated_columns))
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
        shared = names.shared if sizes.shared_hidden else ""
        recipe = Mixture(
            *(inside(place, path) for path in (names.router, routing, names.experts, shared))
        )
        if place:
            put(self, place, FeedForward(recipe))
        router, chooses = _routing(sizes, sizes.experts, names.choice_bias)
        put(self, names.router, router)
        put(self, routing, chooses)
        inner = names.expert_names
        experts = (Expert(width, hidden, number, names=inner) for number in range(sizes.experts))
        put(self, names.experts, nn.ModuleList(experts))
        if shared:
            put(self, shared, FeedForward(Gated(*inner)))
            gate, up, down = (f"{shared}.{path}" for path in inner)
            put(self, gate, nn.Linear(width, sizes.shared_hidden, bias=False))
            put(self, up, nn.Linear(width, sizes.shared_hidden, bias=False))
            put(self, down, nn.Linear(sizes.shared_hidden, width, bias=False))
        return recipe

    def _linear(self, role: str, inputs: int, outputs: int) -> None:
        bias = role in self.layout.biases
        put(self, getattr(self.layout.names, role), nn.Linear(inputs, outputs, bias=bias))


def _routing(sizes: Sizes, experts: int, bias: str) -> tuple[Router, Routing]:
    """What scores the experts, and what chooses among them."""
    count = sizes.experts_per_token
    if sizes.scores == "sigmoid":
        return BiasedRouter(sizes.width, experts, bias), GroupedRouting(
            experts,
            count,
            groups=sizes.groups,
            chosen=sizes.groups_per_token,
            scale=sizes.routed_scale,
        )
    plain = Router(sizes.width, experts, bias=False)
    return plain, Routing(experts, count, normalized=bool(sizes.normalized))


class Decoder(Network):
    """The whole model, under the published key names."""

    gives_asked: ClassVar[bool] = True
    """Where positions are asked for, it gives the logits of these alone (``asked``)."""

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

    @property
    def fused(self) -> dict[str, Part]:
        """Tensors of the module that checkpoints hold as rows of another one, by name."""
        return fused_parts(self.sizes, self.layout)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """``i64[batch, T]``, mask ``[batch, T]`` (0 = padding) ``-> [batch, T, rows]`` logits.

        They are as the published code gives them, shifted where the layout says so. Further masks
        are those of ``read_mask``, which raises ``QdcError`` for what it does not take.
        """
        if isinstance(input_ids, Tensor):  # values of a trace have no shape, and no values
            attention_mask = read_mask(attention_mask, input_ids, self.sizes.block)
        return predict(self, self.layout.names, input_ids, attention_mask)

    def project(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., rows]`` of what the last block gives, ``[..., width]``."""
        return project(self, self.layout.names, hidden)


def fused_parts(sizes: Sizes, layout: Layout) -> dict[str, Part]:
    """Where checkpoints hold what a decoder of these sizes has in parts: none without ``fused``."""
    names, found = layout.names, dict[str, Part]()
    if not names.fused:
        return found
    columns = (sizes.query_columns, sizes.key_columns, sizes.key_columns)
    ends = list(accumulate(columns, initial=0))
    projections = (names.query, names.key, names.value)
    for index in range(sizes.blocks):
        block = f"{names.blocks}.{index}"
        for name, rows in zip(projections, pairwise(ends), strict=True):
            found[f"{block}.{name}.weight"] = Part(f"{block}.{names.fused}.weight", rows)
    return found


def predict(
    model: nn.Module, names: Names, input_ids: Tensor, attention_mask: Tensor | None
) -> Tensor:
    """What a decoder computes, by whatever module holds its parts under these names."""
    hidden = at(model, names.embedding)(input_ids)
    blocks = at(model, names.blocks)
    assert isinstance(blocks, nn.ModuleList)
    asked = current_asked()
    for number, block in enumerate(blocks, 1):
        if asked is None or number < len(blocks):
            hidden = block(hidden, attention_mask)
        else:
            with last(asked):
                hidden = asked.pick(block(hidden, attention_mask))
    return hidden if asked is not None and asked.states else project(model, names, hidden)


def project(model: nn.Module, names: Names, hidden: Tensor) -> Tensor:
    """Logits ``[..., vocabulary]`` of what the last block gives, ``[..., width]``."""
    logits: Tensor = at(model, names.head)(at(model, names.final_norm)(hidden))
    return logits
