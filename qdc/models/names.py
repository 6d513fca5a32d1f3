"""Under which key names a family publishes its tensors: the table that makes it a family."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from qdc.models.places import shared_place

_PATH = re.compile(r"\w+(\.\w+)*")
RESERVED = ("layout", "logits_shift", "sizes", "_recipe", "_attention", "_feed_forward", "_places")
"""Attributes of the modules that are built, beside those of every module."""
IN_EXPERTS = ("activation", "names", "rows", "take", "give")
"""The same of an expert."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Key names of a decoder, without ``.weight`` and ``.bias``; the defaults are Qwen's.

    They are the module paths of what is built, so a checkpoint loads under its own names. A name
    may have any number of dotted parts, whatever stands where: the block of LLaDA holds its
    projections itself, that of Qwen in ``self_attn`` and ``mlp``.
    """

    embedding: str = "model.embed_tokens"
    blocks: str = "model.layers"
    """What the number of a block follows."""
    final_norm: str = "model.norm"
    head: str = "lm_head"

    attention_norm: str = "input_layernorm"
    """The norm in front of the attention; from here on names begin inside a block."""
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    fused: str = ""
    """Where the checkpoint holds the three as one tensor, all rows of the queries first, then those
    of the keys and of the values. They are three modules here; empty if it holds three."""
    query_norm: str = "self_attn.q_norm"
    """The norm of each head of the queries, where the family has one."""
    key_norm: str = "self_attn.k_norm"
    output: str = "self_attn.o_proj"
    """From the heads back to the residual stream."""
    feed_forward_norm: str = "post_attention_layernorm"
    gate: str = "mlp.gate_proj"
    """The projection behind which silu stands."""
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"

    router: str = "mlp.gate"
    """What scores the experts, where the family has some."""
    choice_bias: str = "expert_bias"
    """Inside the router: what is added to scores for the choice of experts, where the family has
    it."""
    experts: str = "mlp.experts"
    """What the number of an expert follows."""
    expert_gate: str = "gate_proj"
    """From here on names begin inside an expert."""
    expert_up: str = "up_proj"
    expert_down: str = "down_proj"
    shared: str = "mlp.shared_experts"
    """Inside a block again: the expert that every token goes to, where the family has one. What is
    in it is called as in the others."""

    @property
    def expert_names(self) -> tuple[str, str, str]:
        """What an expert computes with, inside it."""
        return self.expert_gate, self.expert_up, self.expert_down

    def attention_names(self, *, head_norms: bool) -> tuple[str, ...]:
        """What an attention computes with, inside a block."""
        norms = (self.query_norm, self.key_norm) if head_norms else ()
        return (self.query, self.key, self.value, *norms)

    def feed_forward_names(self, *, sparse: bool, shared: bool = False) -> tuple[str, ...]:
        """What a feed-forward computes with, inside a block."""
        if not sparse:
            return (self.gate, self.up, self.down)
        return (self.router, self.experts, *((self.shared,) if shared else ()))

    def block_names(
        self, *, head_norms: bool, sparse: bool, shared: bool = False
    ) -> tuple[str, ...]:
        """Everything inside a block."""
        return (
            *(self.attention_norm, *self.attention_names(head_norms=head_norms), self.output),
            *(self.feed_forward_norm, *self.feed_forward_names(sparse=sparse, shared=shared)),
        )

    def places(self, *, head_norms: bool, sparse: bool, shared: bool = False) -> tuple[str, str]:
        """The modules that hold all of an attention, and all of a feed-forward.

        Empty where it is the block. One module cannot be both, so the block computes for it.
        """
        attention = shared_place(*self.attention_names(head_norms=head_norms))
        feed_forward = shared_place(*self.feed_forward_names(sparse=sparse, shared=shared))
        return ("", "") if attention == feed_forward else (attention, feed_forward)

    def problems(self, *, head_norms: bool, mixture: bool, shared: bool = False) -> Iterator[str]:
        """Say why no module could be built under these names.

        Args:
            head_norms: whether the family may have norms of queries and keys.
            mixture: whether it may have experts.
            shared: whether it may have an expert that every token goes to.
        """
        yield from _clashes((self.embedding, self.blocks, self.final_norm, self.head))
        for sparse in (False, True) if mixture else (False,):
            inside = self.block_names(head_norms=head_norms, sparse=sparse, shared=shared)
            yield from _clashes((*inside, self.fused) if self.fused else inside)
        if mixture:
            yield from _clashes(self.expert_names, IN_EXPERTS)


def free_name(place: str, name: str, taken: Sequence[str]) -> str:
    """Where something without weights goes: ``place.name``, past every published name.

    ``self_attn`` and ``rotary`` give ``self_attn.rotary``; a published ``self_attn.rotary.freqs``
    would make it ``self_attn.rotary_``.
    """
    path = f"{place}.{name}" if place else name
    while any(f"{other}.".startswith(f"{path}.") for other in taken):
        path += "_"
    return path


def _clashes(paths: Sequence[str], reserved: Sequence[str] = RESERVED) -> Iterator[str]:
    for place, path in enumerate(paths):
        if not _PATH.fullmatch(path):
            yield f"{path!r} is no dotted name"
        for part in path.split("."):
            if hasattr(nn.Module, part) or part in reserved:
                yield f"{path!r}: no module can have a part that is called {part!r}"
        for other in paths[:place]:
            if f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}."):
                yield f"two parts are at one place: {other!r} and {path!r}"
