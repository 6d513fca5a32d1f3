"""A small model as a traced program and as a plain module, with batches to send through both."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from qdc.frontend.opening import open_model
from qdc.frontend.tracer import Program
from qdc.ir.graph import Region, Stage
from qdc.models.families import BUILT_IN
from qdc.streaming.states import StateStore
from qdc.streaming.stream import Stream
from tests.support.checkpoints import write_checkpoint

WIDTH, HIDDEN, LENGTH = 32, 48, 6


@dataclass
class Model:
    """A traced program, a plain module with the same weights, and two uneven batches."""

    program: Program
    plain: nn.Module
    batches: list[Tensor]
    executed: Counter[str] = field(default_factory=Counter)

    @property
    def samples(self) -> int:
        return sum(len(batch) for batch in self.batches)

    def weights(self, name: str) -> dict[str, Tensor]:
        node = self.program.graph[name]
        return {
            p.role: self.plain.get_parameter(f"{node.path}.{p.role}").detach()
            for p in node.parameters
        }

    def stream(self, *, returns: bool = False, held: torch.dtype = torch.float32) -> Stream:
        device = torch.device("cpu")
        return Stream(
            self.program,
            list(self.batches),
            self.weights,
            device,
            returns=returns,
            states=StateStore(held),
        )

    def rewrite(self, layer: str) -> None:
        """Replace a linear's weight by its signs, for streams that are computed from now on."""
        weight = self.weights(layer)["weight"]
        weight.copy_(weight.sign() * weight.abs().mean())

    def inputs(self, layer: str) -> list[Tensor]:
        """What a linear reads in a plain forward of each batch."""
        seen: list[Tensor] = []
        path = self.program.graph[layer].path
        module = self.plain.get_submodule(path)
        hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        for batch in self.batches:
            self.plain(batch)
        hook.remove()
        return seen

    def outputs(self, path: str) -> list[Tensor]:
        """What a submodule gives in a plain forward of each batch."""
        seen: list[Tensor] = []
        module = self.plain.get_submodule(path)
        hook = module.register_forward_hook(lambda _, arguments, given: seen.append(given))
        for batch in self.batches:
            self.plain(batch)
        hook.remove()
        return seen

    @property
    def regions(self) -> tuple[Region, ...]:
        return self.program.graph.regions

    def stages(self) -> list[Stage]:
        graph = self.program.graph
        return [stage for region in self.regions for stage in graph.waves[region.name].each()]


def small_model(folder: Path) -> Model:
    """Three regions in fp32."""
    write_checkpoint(
        folder,
        d_model=WIDTH,
        mlp_hidden_size=HIDDEN,
        n_layers=3,
        vocab=64,
        dtype=torch.float32,
    )
    return model_of(folder)


def model_of(folder: Path) -> Model:
    """Any checkpoint with 64 tokens or more."""
    checkpoint, program = open_model(folder)
    plain, _ = BUILT_IN.build(checkpoint.config)
    state = {name: checkpoint.tensor(name) for name in checkpoint.headers}
    plain.load_state_dict(state, assign=True)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(64, (size, LENGTH), generator=generator) for size in (2, 1)]
    made = Model(program, plain.requires_grad_(False), batches)
    for node in program.graph.linears():
        leaf = program.module.get_submodule(node.path)
        leaf.register_forward_pre_hook(
            lambda _, arguments, name=node.name: made.executed.update({name: len(arguments[0])})
        )
    return made
