"""The leaves of a sparse feed-forward: a router, and the experts behind it.

Every expert is a gated feed-forward on the tokens that are routed to it, and on no others, so its
linears are ordinary nodes of the layer graph: what they read has one row a routed token. How many
those are is known only at run time; the graph calls that size ``N``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdc.models.configuration import BEST_OF_GROUP
from qdc.models.places import at, put

Activation = Callable[[Tensor], Tensor]

SMALLEST_SUM = 1e-20
"""What is added to a sum of weights before it is divided by."""
TRACED_ROWS = 15_485_863
"""Rows of an expert on the meta device: a prime, by which the tracer knows this size."""


class Router(nn.Linear):
    """Scores every expert for every token. A class of its own: its weight is never quantized."""


class BiasedRouter(Router):
    """Sigmoid scores, and beside them the same with a bias, by which experts are chosen.

    Always in fp32, as published code has it: what is close to each other must not become equal.
    """

    def __init__(self, width: int, experts: int, bias: str = "expert_bias") -> None:
        """Build without weights; ``bias`` is the name of that parameter."""
        super().__init__(width, experts, bias=False)
        self.choice_bias = bias
        self.register_parameter(bias, nn.Parameter(torch.zeros(experts)))

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, T, width] -> f32[batch, T, 2, experts]``: scores, and what chooses."""
        scores = F.linear(hidden.float(), self.weight.float()).sigmoid()
        bias: Tensor = getattr(self, self.choice_bias)
        return torch.stack((scores, scores + bias.float()), dim=-2)


class ScaledRouter(Router):
    """Scores of what was normed without a weight, and then scaled column by column.

    Source: the router of Gemma 4.
    """

    def __init__(self, width: int, experts: int, eps: float) -> None:
        """Build without weights."""
        super().__init__(width, experts, bias=False)
        self.scale = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, T, width] -> [batch, T, experts]``."""
        normed = F.rms_norm(hidden.float(), hidden.shape[-1:], eps=self.eps).to(hidden.dtype)
        scaled = normed * self.scale * self.in_features**-0.5
        return F.linear(scaled, self.weight)


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


class ScaledRouting(Routing):
    """The same with weights that add up to 1, each times a number of its expert."""

    def __init__(self, experts: int, count: int) -> None:
        """Choose; ``count`` are the experts of a token."""
        super().__init__(experts, count, normalized=True)
        self.per_expert_scale = nn.Parameter(torch.ones(experts))

    def forward(self, scores: Tensor) -> Tensor:
        """``[batch, T, experts]``, in fp32; the result has the dtype of the scores."""
        weights = super().forward(scores.float()) * self.per_expert_scale.float()
        return weights.to(scores.dtype)


class GroupedRouting(Routing):
    """From what a ``BiasedRouter`` gives to weights: first groups are chosen, then experts in them.

    A group counts by its two best experts. Weights are the scores without the bias, made to add up
    to 1 where a token has several experts, times a factor. Source: shared facts on the ecosystem
    (A.4), and the published code of LLaDA2.
    """

    def __init__(self, experts: int, count: int, *, groups: int, chosen: int, scale: float) -> None:
        """Choose.

        Args:
            experts: how many there are.
            count: experts of a token.
            groups: of equally many experts each.
            chosen: groups of a token.
            scale: what the weights are multiplied with.
        """
        super().__init__(experts, count, normalized=count > 1)
        self.groups, self.chosen, self.scale = groups, chosen, scale

    def forward(self, scores: Tensor) -> Tensor:
        """``f32[batch, T, 2, experts]``; the result is ``f32[batch, T, experts]``."""
        plain, biased = scores.unbind(-2)
        if self.groups > 1:
            grouped = biased.unflatten(-1, (self.groups, -1))  # type: ignore[no-untyped-call]
            worth = grouped.topk(BEST_OF_GROUP, dim=-1).values.sum(-1)
            best = worth.topk(self.chosen, dim=-1).indices
            outside = torch.ones_like(worth, dtype=torch.bool).scatter(-1, best, False)
            biased = grouped.masked_fill(outside[..., None], -torch.inf).flatten(-2)
        chosen = biased.topk(self.count, dim=-1).indices
        weights = plain.gather(-1, chosen)
        if self.normalized:
            weights = weights / (weights.sum(-1, keepdim=True) + SMALLEST_SUM)
        return torch.zeros_like(plain).scatter(-1, chosen, weights * self.scale)


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
        weighted = (given * share[:, None]).to(mixed.dtype)
        added = mixed.flatten(0, 1).index_add(0, rows, weighted)
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
