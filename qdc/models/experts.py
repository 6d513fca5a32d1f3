"""The leaves of a sparse feed-forward: a router, and the experts behind it.

Every expert is a gated feed-forward on the tokens that are routed to it, and on no others, so its
linears are ordinary nodes of the layer graph: what they read has one row a routed token. How many
those are is known only at run time; the graph calls that size ``N``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdc.models.places import at, put

Activation = Callable[[Tensor], Tensor]

TRACED_ROWS = 15_485_863
"""Rows of an expert on the meta device: a prime, by which the tracer knows this size."""


class Router(nn.Linear):
    """Scores every expert for every token. A class of its own: its weight is never quantized."""


class Routing(nn.Module):
    """From scores to the weight of every expert for every token: 0 but for the best ones."""

    def __init__(self, experts: int, count: int, *, normalized: bool) -> None:
        """Choose.

        Args:
            experts: how many there are.
            count: experts of a token.
            normalized: whether their weights are made to add up to 1.
        """
        super().__init__()
        self.experts, self.count, self.normalized = experts, count, normalized

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
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        """Build without weights.

        Args:
            width: of the residual stream.
            hidden: columns inside.
            number: of the expert.
            rows: finds the expert's tokens in another way than ours.
            activation: stands behind the gate.
            names: of gate, up and down projection.
        """
        super().__init__()
        self.activation, self.names = activation, names
        self.rows = rows or Rows(number)
        self.take, self.give = Take(), Give(number)
        gate, up, down = names
        put(self, gate, nn.Linear(width, hidden, bias=False))
        put(self, up, nn.Linear(width, hidden, bias=False))
        put(self, down, nn.Linear(hidden, width, bias=False))

    def forward(self, hidden: Tensor, weights: Tensor, mixed: Tensor) -> Tensor:
        """Add this expert's share to ``mixed``, ``[batch, T, width]``."""
        gate, up, down = (at(self, name) for name in self.names)
        rows = self.rows(weights)
        taken = self.take(hidden, rows)
        given = down(self.activation(gate(taken)) * up(taken))
        added: Tensor = self.give(mixed, weights, rows, given)
        return added


def routed_share(model: nn.Module) -> float:
    """Share of the tokens that an expert gets on average; 1 in a model without experts."""
    shares = [part.count / part.experts for part in model.modules() if isinstance(part, Routing)]
    return sum(shares) / len(shares) if shares else 1.0
