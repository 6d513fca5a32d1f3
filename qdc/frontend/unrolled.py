"""Experts of a transformers model as linears again.

Transformers holds the weights of all experts of a layer in two parameters of three dimensions, and
fuses them when it loads. Checkpoints hold one matrix for each, and so does a layer graph: what an
expert reads are the tokens that are routed to it. A fused module is replaced by one expert after
the other, under the names that published checkpoints give them.

``Routing`` and ``Rows`` are called as in ``qdc.models.experts``: their nodes in the graph are named
by their classes, and have to be the same operations whichever front end has traced the model.
"""

import torch
from torch import Tensor, nn

from qdc.models.experts import Expert

GATE_UP, DOWN = "gate_up_proj", "down_proj"


class Routing(nn.Module):
    """From chosen experts to the weight of every expert for every token."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, chosen: Tensor, weights: Tensor) -> Tensor:
        """``i64[tokens, k]`` and ``[tokens, k] -> [1, tokens, experts]``, 0 where not chosen."""
        spread = weights.new_zeros(weights.shape[0], self.experts)
        return spread.scatter(1, chosen, weights)[None]


class Rows(nn.Module):
    """The tokens that are routed to one expert, in a form that ``torch.export`` follows."""

    def __init__(self, expert: int) -> None:
        super().__init__()
        self.expert = expert

    def forward(self, weights: Tensor) -> Tensor:
        """``[1, tokens, experts] -> i64[N]``: their places, ascending."""
        return weights[..., self.expert].flatten().nonzero()[:, 0]


class UnrolledExperts(nn.Module):
    """Experts by their numbers, called as transformers calls its fused ones."""

    def __init__(self, width: int, hidden: int, experts: int, activation: nn.Module) -> None:
        super().__init__()
        self.routing = Routing(experts)
        self.executed = experts
        """How many of them, from the first on."""
        for number in range(experts):
            self.add_module(str(number), Expert(width, hidden, number, Rows(number), activation))

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """``[tokens, width]``, experts and weights ``[tokens, k]`` each, ``-> [tokens, width]``."""
        hidden, spread = hidden[None], self.routing(chosen, weights)
        mixed = torch.zeros_like(hidden)
        for number in range(self.executed):
            mixed = self.get_submodule(str(number))(hidden, spread, mixed)
        return mixed[0]

    def shorten(self) -> int:
        """Leave the first expert alone; the others are gone. Returns how many there were."""
        for number in range(1, self.executed):
            delattr(self, str(number))
        self.executed = 1
        return self.routing.experts


def unroll_experts(body: nn.Module) -> None:
    """Replace the fused experts of a model that are gated, without bias, and stored row by row.

    Others stay, for the front end to refuse with their names.
    """
    for path, module in list(body.named_modules()):
        if not _is_plain(module):
            continue
        experts, width, hidden = module.get_parameter(DOWN).shape
        owner, _, leaf = path.rpartition(".")
        with torch.device("meta"):
            unrolled = UnrolledExperts(width, hidden, experts, module.act_fn)
        setattr(body.get_submodule(owner), leaf, unrolled)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is fused experts that compute what ``Expert`` does."""
    from transformers.integrations.moe import _default_apply_gate

    shapes = {name: p.shape for name, p in module.named_parameters(recurse=False)}
    if set(shapes) != {GATE_UP, DOWN} or any(len(shape) != 3 for shape in shapes.values()):
        return False
    experts, width, hidden = shapes[DOWN]
    usual = {
        "has_gate": True,
        "has_bias": False,
        "has_post_expert_norm": False,
        "is_transposed": False,
        "is_concatenated": True,
    }
    return (
        shapes[GATE_UP] == (experts, 2 * hidden, width)
        and all(getattr(module, name, None) is value for name, value in usual.items())
        and getattr(type(module), "_apply_gate", None) is _default_apply_gate
        and isinstance(getattr(module, "act_fn", None), nn.Module)
    )
