"""Tiny mixtures of experts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.families import CASES, State, write_family

WIDTH, HIDDEN = 32, 24


def write_mixture(
    folder: Path, *, experts: int = 4, count: int = 2, idle: bool = False, **fields: Any
) -> Path:
    """Write a random LLaDA-MoE in fp32 and return its folder.

    Args:
        folder: where.
        experts: of every block.
        count: experts of a token.
        idle: whether the last expert of every block never gets a token; needs a count of 1.
        fields: further fields of the configuration.
    """
    case = CASES["llada-moe"]
    sizes = {"num_experts": experts, "num_experts_per_tok": count}
    case = replace(case, config={**case.config, **sizes, **fields})
    return write_family(folder, case, dtype=torch.float32, edit=_silence if idle else None)


def _silence(state: State) -> None:
    """Between two others, a score is never the highest."""
    for name, tensor in state.items():
        if name.endswith("mlp.gate.weight"):
            tensor[-1] = (tensor[0] + tensor[1]) / 2


def routed(gate: Tensor, hidden: Tensor, count: int, expert: int) -> Tensor:
    """Places of the tokens of ``[..., width]`` that a router sends to an expert, ascending."""
    scores = hidden.flatten(0, -2) @ gate.T
    return (scores.topk(count).indices == expert).any(-1).nonzero()[:, 0]
