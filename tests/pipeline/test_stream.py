"""The calibration stream against a plain forward with hooks."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qdc.compiler import open_model
from qdc.frontend.tracer import Program
from qdc.ir.graph import Stage
from qdc.models.families import build
from qdc.pipeline.stream import Stream
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

    def stream(self) -> Stream:
        return Stream(self.program, list(self.batches), self.weights, torch.device("cpu"))

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

    def stages(self) -> list[Stage]:
        return [stage for region in self.program.graph.regions for stage in region.stages]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    folder = write_checkpoint(
        tmp_path / "model",
        d_model=WIDTH,
        mlp_hidden_size=HIDDEN,
        n_layers=3,
        vocab=64,
        dtype=torch.float32,
    )
    checkpoint, program = open_model(folder)
    plain, _ = build(checkpoint.config)
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


def test_values_are_those_of_a_plain_forward_at_every_stage(model: Model) -> None:
    stream = model.stream()
    for region in model.program.graph.regions:
        for stage in region.stages:
            stream.enter(stage)
            for layer in stage.layers:
                torch.testing.assert_close(list(stream.values(stage)), model.inputs(layer))
        stream.leave(region)


def test_values_follow_the_weights_as_they_are_replaced(model: Model) -> None:
    stream = model.stream()
    first = model.inputs(model.stages()[-1].layers[0])
    for stage in model.stages():
        stream.enter(stage)
        torch.testing.assert_close(list(stream.values(stage)), model.inputs(stage.layers[0]))
        for layer in stage.layers:
            weight = model.weights(layer)["weight"]
            weight.copy_(weight.sign() * weight.abs().mean())
    last = model.inputs(model.stages()[-1].layers[0])
    assert not torch.allclose(first[0], last[0], rtol=0.1), "the rounding must show"


@pytest.mark.parametrize("leave", [True, False])
def test_each_linear_is_executed_at_most_once_for_each_sample(model: Model, leave: bool) -> None:
    stream = model.stream()
    for region in model.program.graph.regions:
        for stage in region.stages:
            stream.enter(stage)
            for _ in range(2):
                assert len(list(stream.values(stage))) == len(model.batches)
        if leave:
            stream.leave(region)
    layers = [name for stage in model.stages()[:-1] for name in stage.layers]
    assert model.executed == dict.fromkeys(layers, model.samples)
    assert stream.linear_calls == sum(model.executed.values())


def test_only_the_frontier_is_held_between_stages(model: Model) -> None:
    stream = model.stream()
    tokens = model.samples * LENGTH
    held = []
    for stage in model.stages():
        stream.enter(stage)
        held.append(stream.kept_bytes() // (4 * tokens))
    # the residual alone; it and the attention; it alone; it and the gated hidden state
    assert held == [WIDTH, 2 * WIDTH, WIDTH, WIDTH + HIDDEN] * 3


def test_never_more_is_held_than_what_later_nodes_read(model: Model) -> None:
    graph, stream = model.program.graph, model.stream()
    order = [node.name for node in graph]
    tokens = model.samples * LENGTH
    for stage in model.stages():
        stream.enter(stage)
        later = set(order[stream.boundary :])
        live = [
            name
            for name in order[: stream.boundary]
            if name != "attention_mask" and later & set(graph.edges.successors(name))
        ]
        sizes = [graph[name].type.elements({"B": 1, "L": 1}) for name in live]
        assert stream.kept_bytes() <= 4 * tokens * sum(sizes)


def test_going_back_or_past_the_end_does_nothing(model: Model) -> None:
    stream = model.stream()
    first, last = model.program.graph.regions[0], model.program.graph.regions[-1]
    stream.leave(first)
    calls, boundary = stream.linear_calls, stream.boundary
    stream.enter(first.stages[0])
    stream.leave(first)
    stream.leave(last)
    assert (stream.linear_calls, stream.boundary) == (calls, boundary)


def test_the_samples_stay_readable(model: Model) -> None:
    stream = model.stream()
    stream.enter(model.stages()[-1])
    assert torch.equal(stream.tokens, torch.cat(model.batches))
