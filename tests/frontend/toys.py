"""Toy models of the leaves that the tracer knows, under names that say nothing or lie."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qdc.frontend.tracer import Program, trace
from qdc.ir.facts import ModelFacts
from qdc.models.layers import RMSNorm

WIDTH, VOCABULARY = 8, 20
FACTS = ModelFacts(family="toy", mask_token_id=1, vocabulary=VOCABULARY, max_length=16)


def linear(rows: int = WIDTH) -> nn.Linear:
    return nn.Linear(WIDTH, rows, bias=False)


class Block(nn.Module):
    """Two linears on one value, then one: like gate, up and down, misnamed."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = RMSNorm(WIDTH, 1e-5)
        self.lm_head = linear()
        self.wte = linear()
        self.q_proj = linear()

    def forward(self, hidden: Tensor) -> Tensor:
        wte = self.blocks(hidden)
        added: Tensor = self.q_proj(self.lm_head(wte) * self.wte(wte))
        return hidden + added


class Other(Block):
    """The same, of another class."""


class Toy(nn.Module):
    """An embedding, a list of blocks, and a head, misnamed."""

    def __init__(self, members: list[nn.Module] | None = None) -> None:
        super().__init__()
        self.ff_out = nn.Embedding(VOCABULARY, WIDTH)
        self.junk = nn.ModuleList(members or [Block(), Block()])
        self.attn_out = nn.Linear(WIDTH, VOCABULARY)

    def stream(self, hidden: Tensor) -> Tensor:
        for member in self.junk:
            hidden = member(hidden)
        return hidden

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        logits: Tensor = self.attn_out(self.stream(self.ff_out(input_ids)))
        return logits


def traced(make: Callable[[], nn.Module]) -> Program:
    """Build a toy on the meta device and trace it."""
    with torch.device("meta"):
        module = make()
    return trace(module.eval(), FACTS)
