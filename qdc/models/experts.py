"""The leaves of a sparse feed-forward, and the feed-forward: a router and experts behind it.

Every expert is a gated feed-forward on the tokens that are routed to it, and on no others, so its
linears are ordinary nodes of the layer graph: what they read has one row a routed token. How many
those are is known only at run time; the graph calls that size ``N``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]

TRACED_ROWS = 15_485_863
"""Rows of an expert on the meta device: a prime, by which the tracer knows this size."""


class Router(nn.Linear):
    """Scores every expert for every token. A class of its own: its weight is never quantized."""


class Routing(nn.Module):
    """From scores to the weight of every expert for every token: 0 but for the best ones."""

    def __init__(self, count: int, *, normalized: bool) -> None:
        """Choose.

        Args:
            count: experts of a token.
            normalized: whether their weights are made to add up to 1.
        """
        super().__init__()
        self.count, self.normalized = count, normalized

    def forward(self, scores: Tensor) -> Tensor:
        """``[batch, T, experts]``, softmax in fp32; the result has the dtype of the scores."""
        shares = scores.float().softmax(-1)
        best, chosen = shares.topk(self.count, dim=-1)
        if self.normalized:
            best = best / best.sum(-1, keepdim=True)
        return torch.zeros_like(shares).scatter(-1, chosen, best).to(scores.dtype)


class Rows(nn.Module):
    """The tokens that are routed to one expert."""

    def __init__(self, expert: int) -> None:
        super().__init__()
        self.expert = expert

    def forward(self, weights: Tensor) -> Tensor:
        """``[batch, T, experts] -> i64[N]``: their places in ``batch * T``, ascending."""
        if weights.is_meta:
            return weights.new_empty(TRACED_ROWS, dtype=torch.int64)
        return weights[..., self.expert].flatten().nonzero().flatten()


class Take(nn.Module):
    """What an expert reads."""

    def forward(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """``[batch, T, width]`` and ``i64[N] -> [N, width]``."""
        return hidden.flatten(0, 1).index_select(0, rows)


class Give(nn.Module):
    """Adds what an expert gives to what the experts before it gave, token by token."""

    def __init__(self, expert: int) -> None:
        super().__init__()
        self.expert = expert

    def forward(self, mixed: Tensor, weights: Tensor, rows: Tensor, given: Tensor) -> Tensor:
        """``[batch, T, width]`` plus the weighted rows of ``given``, ``[N, width]``."""
        share = weights[..., self.expert].flatten().index_select(0, rows)
        added = mixed.flatten(0, 1).index_add(0, rows, given * share[:, None])
        return added.view_as(mixed)


class Expert(nn.Module):
    """One gated feed-forward, under its published key names."""

    def __init__(
        self,
        width: int,
        hidden: int,
        number: int,
        rows: nn.Module | None = None,
        activation: Activation = F.silu,
    ) -> None:
        """Build without weights; ``rows`` finds the expert's tokens in another way than ours."""
        super().__init__()
        self.activation = activation
        self.rows = rows or Rows(number)
        self.take, self.give = Take(), Give(number)
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, hidden: Tensor, weights: Tensor, mixed: Tensor) -> Tensor:
        """Add this expert's share to ``mixed``, ``[batch, T, width]``."""
        rows = self.rows(weights)
        taken = self.take(hidden, rows)
        given = self.down_proj(self.activation(self.gate_proj(taken)) * self.up_proj(taken))
        added: Tensor = self.give(mixed, weights, rows, given)
        return added


class SparseFeedForward(nn.Module):
    """A router and its experts; ``gate`` and ``experts.E`` are the published key names."""

    def __init__(
        self, width: int, hidden: int, experts: int, count: int, *, normalized: bool
    ) -> None:
        """Build without weights.

        Args:
            width: of the residual stream.
            hidden: of an expert.
            experts: how many there are.
            count: how many of them a token is routed to.
            normalized: whether the weights of these add up to 1.
        """
        super().__init__()
        self.gate = Router(width, experts, bias=False)
        self.routing = Routing(count, normalized=normalized)
        self.experts = nn.ModuleList(Expert(width, hidden, number) for number in range(experts))

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, T, width] -> [batch, T, width]``."""
        weights = self.routing(self.gate(hidden))
        mixed = torch.zeros_like(hidden)
        for expert in self.experts:
            mixed = expert(hidden, weights, mixed)
        return mixed


def routed_share(model: nn.Module) -> float:
    """Share of the tokens that an expert gets on average; 1 in a model without experts."""
    sparse = [part for part in model.modules() if isinstance(part, SparseFeedForward)]
    shares = [part.routing.count / len(part.experts) for part in sparse]
    return sum(shares) / len(shares) if shares else 1.0
