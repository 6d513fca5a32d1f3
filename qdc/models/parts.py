"""What a block computes between its leaves: each recipe knows where its modules stand.

A recipe runs in the module that holds all of its leaves. Where that is a module of its own, as
``self_attn`` is in Qwen's blocks, it is a ``SelfAttention`` or a ``FeedForward``, so that its code
can be traced by itself; where the block holds them, as LLaDA's does, the block runs it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdc.models.places import at


@dataclass(frozen=True)
class Heads:
    """Attention up to the heads' results side by side; paths in the module that runs it."""

    query: str
    key: str
    value: str
    query_norm: str
    """Empty if queries are not normed."""
    key_norm: str
    rotary: str
    attention: str
    columns: int
    """Of a head."""
    early: bool
    """Whether queries are rotated before keys are projected."""

    def run(self, holder: nn.Module, normed: Tensor, attention_mask: Tensor | None) -> Tensor:
        """``[batch, T, width] -> [batch, T, heads * columns]``."""
        if self.early:
            query = self._turned(holder, self._heads(holder, self.query, normed), self.query_norm)
            key = self._turned(holder, self._heads(holder, self.key, normed), self.key_norm)
            value = self._heads(holder, self.value, normed)
        else:
            query, key, value = (
                self._heads(holder, path, normed) for path in (self.query, self.key, self.value)
            )
            query = self._normed(holder, query, self.query_norm)
            key = self._normed(holder, key, self.key_norm)
            query, key = self._turned(holder, query), self._turned(holder, key)
        mixed: Tensor = at(holder, self.attention)(query, key, value, attention_mask)
        return mixed

    def _heads(self, holder: nn.Module, path: str, normed: Tensor) -> Tensor:
        """What a projection gives, ``[batch, T, heads, columns]``."""
        projected: Tensor = at(holder, path)(normed)
        shape = (-1, self.columns)
        heads: Tensor = projected.unflatten(-1, shape)  # type: ignore[no-untyped-call]
        return heads

    def _normed(self, holder: nn.Module, heads: Tensor, norm: str) -> Tensor:
        found: Tensor = at(holder, norm)(heads) if norm else heads
        return found

    def _turned(self, holder: nn.Module, heads: Tensor, norm: str = "") -> Tensor:
        """Normed if a norm is given, then rotated."""
        turned: Tensor = at(holder, self.rotary)(self._normed(holder, heads, norm))
        return turned


@dataclass(frozen=True)
class Gated:
    """The dense feed-forward, ``down(silu(gate(x)) * up(x))``; paths in the module that runs it."""

    gate: str
    up: str
    down: str

    def run(self, holder: nn.Module, normed: Tensor) -> Tensor:
        """``[..., width] -> [..., width]``."""
        product = F.silu(at(holder, self.gate)(normed)) * at(holder, self.up)(normed)
        found: Tensor = at(holder, self.down)(product)
        return found


@dataclass(frozen=True)
class Mixture:
    """The sparse feed-forward, a router and its experts; paths in the module that runs it."""

    router: str
    routing: str
    experts: str
    shared: str = ""
    """The expert that every token goes to; empty if there is none."""

    def run(self, holder: nn.Module, normed: Tensor) -> Tensor:
        """``[batch, T, width] -> [batch, T, width]``."""
        weights = at(holder, self.routing)(at(holder, self.router)(normed))
        mixed = torch.zeros_like(normed)
        experts = at(holder, self.experts)
        assert isinstance(experts, nn.ModuleList)
        for expert in experts:
            mixed = expert(normed, weights, mixed)
        if self.shared:
            mixed = mixed + at(holder, self.shared)(normed)
        return mixed


class SelfAttention(nn.Module):
    """A module of its own that holds an attention."""

    def __init__(self, recipe: Heads) -> None:
        super().__init__()
        self._recipe = recipe

    def forward(self, normed: Tensor, attention_mask: Tensor | None) -> Tensor:
        """``[batch, T, width]`` to the heads' results side by side."""
        return self._recipe.run(self, normed, attention_mask)


class FeedForward(nn.Module):
    """A module of its own that holds a feed-forward."""

    def __init__(self, recipe: Gated | Mixture) -> None:
        super().__init__()
        self._recipe = recipe

    def forward(self, normed: Tensor) -> Tensor:
        """``[batch, T, width] -> [batch, T, width]``."""
        return self._recipe.run(self, normed)
