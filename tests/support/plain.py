"""A checkpoint as a plain module, to hold what streams compute against."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from qdc.frontend.opening import open_model
from qdc.models.families import BUILT_IN


class PlainModel:
    """The model in fp32; weights may be replaced by the name of their node."""

    def __init__(self, folder: Path, tokens: Tensor) -> None:
        """``tokens`` are ``i64[samples, length]``."""
        checkpoint, self.program = open_model(folder)
        self.module, _ = BUILT_IN.build(checkpoint.config)
        state = {name: checkpoint.tensor(name).float() for name in checkpoint.headers}
        self.module.load_state_dict(state, assign=True)
        self.tokens = tokens

    @torch.no_grad()
    def moment(self, layer: str) -> Tensor:
        """Mean of the outer products of what a linear reads, ``f32[columns, columns]``."""
        seen: list[Tensor] = []
        leaf = self.module.get_submodule(self.program.graph[layer].path)
        hook = leaf.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        self.module(self.tokens)
        hook.remove()
        inputs = seen[0].flatten(0, 1).double()
        return (inputs.T @ inputs / len(inputs)).float()

    @torch.no_grad()
    def replace(self, weights: Mapping[str, Tensor]) -> None:
        """Put these weights in place of the model's own."""
        for name, weight in weights.items():
            path = self.program.graph[name].path
            self.module.get_parameter(f"{path}.weight").copy_(weight)
