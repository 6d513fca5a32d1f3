"""Under which key names a family publishes its tensors: the table that makes it a family."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

_PATH = re.compile(r"\w+(\.\w+)*")
RESERVED = ("layout", "logits_shift", "sizes", "sparse")
"""Attributes of the modules that are built, beside those of every module."""


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
    experts: str = "mlp.experts"
    """What the number of an expert follows."""
    expert_gate: str = "gate_proj"
    """From here on names begin inside an expert."""
    expert_up: str = "up_proj"
    expert_down: str = "down_proj"

    @property
    def attention_place(self) -> str:
        """What queries, keys and values have in common: what has no weights stands there too."""
        return _shared(self.query, self.key, self.value)

    @property
    def gate_place(self) -> str:
        """The same of the dense feed-forward."""
        return _shared(self.gate, self.up)

    @property
    def experts_place(self) -> str:
        """The same of the sparse one."""
        return _shared(self.router, self.experts)

    def attention_names(self, *, head_norms: bool) -> tuple[str, ...]:
        """What an attention and its norms are called inside a block."""
        found = (self.attention_norm, self.query, self.key, self.value, self.output)
        norms = (self.query_norm, self.key_norm) if head_norms else ()
        return (*found, *norms, self.feed_forward_norm)

    def feed_forward_names(self, *, sparse: bool) -> tuple[str, ...]:
        """What a feed-forward is called inside a block."""
        return (self.router, self.experts) if sparse else (self.gate, self.up, self.down)

    def problems(self, *, head_norms: bool, mixture: bool) -> Iterator[str]:
        """Say why no module could be built under these names.

        Args:
            head_norms: whether the family may have norms of queries and keys.
            mixture: whether it may have experts.
        """
        attention = self.attention_names(head_norms=head_norms)
        yield from _clashes((self.embedding, self.blocks, self.final_norm, self.head))
        for sparse in (False, True) if mixture else (False,):
            yield from _clashes((*attention, *self.feed_forward_names(sparse=sparse)))
        if mixture:
            yield from _clashes((self.expert_gate, self.expert_up, self.expert_down))


def free_name(place: str, name: str, taken: Sequence[str]) -> str:
    """Where something without weights goes: ``place.name``, past every published name.

    ``self_attn`` and ``rotary`` give ``self_attn.rotary``; a published ``self_attn.rotary.freqs``
    would make it ``self_attn.rotary_``.
    """
    path = f"{place}.{name}" if place else name
    while any(f"{other}.".startswith(f"{path}.") for other in taken):
        path += "_"
    return path


def _shared(*paths: str) -> str:
    """The dotted start that all paths share, without their last part."""
    start = []
    for parts in zip(*(path.split(".")[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        start.append(parts[0])
    return ".".join(start)


def _clashes(paths: Sequence[str]) -> Iterator[str]:
    for place, path in enumerate(paths):
        if not _PATH.fullmatch(path):
            yield f"{path!r} is no dotted name"
        for part in path.split("."):
            if hasattr(nn.Module, part) or part in RESERVED:
                yield f"{path!r}: no module can have a part that is called {part!r}"
        for other in paths[:place]:
            if f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}."):
                yield f"two parts are at one place: {other!r} and {path!r}"
