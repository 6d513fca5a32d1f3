"""Streams that go back to where they entered a region, and the executor below them."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from qdc.errors import InvalidGraph
from qdc.pipeline.passbase import Pass
from qdc.pipeline.registry import standard_registry
from qdc.streaming.execute import Executor
from qdc.streaming.unit import Unit
from tests.support.compiles import run_passes
from tests.support.streams import Model, small_model

TOKENS = torch.tensor([[5, 6, 7, 1], [9, 1, 1, 2]])


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return small_model(tmp_path / "model")


def test_a_stream_goes_back_to_an_earlier_stage_of_its_region(model: Model) -> None:
    stream = model.stream(returns=True)
    first, *_, last = model.regions[0].stages
    stream.start(model.regions[0])
    stream.enter(last)
    model.rewrite(first.layers[0])
    stream.enter(first)
    torch.testing.assert_close(list(stream.values(first)), model.inputs(first.layers[0]))
    stream.enter(last)
    torch.testing.assert_close(list(stream.values(last)), model.inputs(last.layers[0]))


def test_going_back_forgets_what_was_computed_with_old_weights(model: Model) -> None:
    stream = model.stream(returns=True)
    region = model.regions[1]
    stream.leave(model.regions[0])
    last = region.stages[-1]
    stream.enter(last)
    old = torch.cat(list(stream.values(last)))
    model.rewrite(region.stages[0].layers[2])
    assert torch.equal(torch.cat(list(stream.values(last))), old), "it has gone past that layer"
    stream.rewind()
    stream.enter(last)
    new = torch.cat(list(stream.values(last)))
    torch.testing.assert_close(new, torch.cat(model.inputs(last.layers[0])))
    assert not torch.allclose(new, old)


def test_each_region_has_its_own_entrance(model: Model) -> None:
    stream = model.stream(returns=True)
    for region in model.regions:
        stream.start(region)
        boundary = stream.boundary
        stream.enter(region.stages[-1])
        assert stream.boundary > boundary
        stream.start(region)
        assert stream.boundary == boundary
        stream.leave(region)


def test_a_stream_that_cannot_return_says_so(model: Model) -> None:
    stream = model.stream()
    first, *_, last = model.regions[0].stages
    stream.enter(last)
    with pytest.raises(RuntimeError, match="does not hold what it would go back to"):
        stream.enter(first)
    with pytest.raises(RuntimeError, match="does not hold what it would go back to"):
        stream.start(model.regions[0])


def test_a_node_is_passed_until_its_region_is_left(model: Model) -> None:
    stream = model.stream(returns=True)
    region = model.regions[0]
    layer = region.stages[0].layers[0]
    assert not stream.passed(layer)
    stream.enter(region.stages[-1])
    assert stream.passed(layer)
    assert not stream.passed(region.stages[-1].layers[0])
    stream.rewind()
    assert not stream.passed(layer)
    stream.leave(region)
    assert not stream.passed(layer), "what was before is settled"


def test_computing_ahead_moves_nothing(model: Model) -> None:
    stream = model.stream()
    region = model.regions[1]
    stream.start(region)
    held = [dict(environment) for environment in stream.kept]
    (result,) = stream.results(region)
    found = [values[result] for values in stream.compute((result,))]
    path = "model.transformer.blocks.1"
    torch.testing.assert_close(found, model.outputs(path))
    assert [set(e) for e in stream.kept] == [set(e) for e in held]
    assert stream.boundary == stream.executor.order.place[region.nodes[0]]


def steps_of(model: Model, held: Mapping[str, Tensor]) -> tuple[Executor, list[str], str]:
    executor = Executor(model.program, torch.device("cpu"))
    last = executor.order.names[-1]
    return executor, executor.order.steps((last,), held), last


def test_the_executor_gives_what_a_plain_forward_gives(model: Model) -> None:
    held = {Executor(model.program, torch.device("cpu")).order.tokens: model.batches[0]}
    executor, steps, last = steps_of(model, held)
    parameters = {name: model.weights(name) for name in steps}
    found = executor.run(held, steps, parameters, (last,))
    torch.testing.assert_close(found[last], model.outputs("")[0])
    linears = len(list(model.program.graph.linears()))
    assert executor.linear_calls == linears * len(model.batches[0])


def test_gradients_flow_through_the_executor(model: Model) -> None:
    held = {Executor(model.program, torch.device("cpu")).order.tokens: model.batches[0]}
    executor, steps, last = steps_of(model, held)
    parameters = {name: dict(model.weights(name)) for name in steps}
    for name in ("blocks.0.q_proj", "blocks.2.ff_norm"):
        parameters[name]["weight"] = parameters[name]["weight"].clone().requires_grad_()
    found = executor.run(held, steps, parameters, (last,))[last]
    torch.autograd.backward(found.square().sum())

    plain = model.plain
    for name in ("blocks.0.q_proj", "blocks.2.ff_norm"):
        path = f"{model.program.graph[name].path}.weight"
        plain.get_parameter(path).requires_grad_()
    torch.autograd.backward(plain(model.batches[0]).square().sum())
    for name in ("blocks.0.q_proj", "blocks.2.ff_norm"):
        expected = plain.get_parameter(f"{model.program.graph[name].path}.weight").grad
        assert expected is not None
        assert bool(expected.any())
        torch.testing.assert_close(parameters[name]["weight"].grad, expected, rtol=1e-4, atol=1e-6)


class Flip(Pass):
    """Negate every norm gain of the region, after its stream has gone to the last stage."""

    name: ClassVar[str] = "flip"
    seen: ClassVar[dict[str, Tensor]] = {}

    def run(self, unit: Unit) -> None:
        assert unit.region is not None
        stream, reference = unit.stream(lambda: [TOKENS]), unit.reference(lambda: [TOKENS])
        last = unit.stages[-1]
        for each in (stream, reference):
            each.start(unit.region)
            each.enter(last)
        norm = unit.graph[f"{unit.region.name}.attn_norm"]
        unit.tune(norm, "weight", -unit.current(norm))
        for kind, each in (("stream", stream), ("reference", reference)):
            each.enter(last)
            (self.seen[f"{kind} {unit.region.name}"],) = each.values(last)


def test_rewriting_what_a_stream_has_passed_needs_a_declaration(
    model: Model, tmp_path: Path
) -> None:
    registry = standard_registry()
    registry.add(Flip)
    with pytest.raises(InvalidGraph, match="has gone past the layer") as caught:
        run_passes(tmp_path / "model", tmp_path, registry, "rtn-lower,flip,pack")
    assert caught.value.where == ("%blocks.0.attn_norm",)
    assert "provides" in str(caught.value.help)


def test_the_reference_stream_stays_that_of_the_original(model: Model, tmp_path: Path) -> None:
    registry = standard_registry()
    registry.add(Flip)
    Flip.seen.clear()
    passes = "stages{order=outputs-first}(rtn-lower{bits=1}),flip,pack"
    run_passes(tmp_path / "model", tmp_path, registry, passes)
    model.batches = [TOKENS]
    for index in range(3):
        layer = f"blocks.{index}.ff_out"
        (expected,) = model.inputs(layer)
        torch.testing.assert_close(Flip.seen[f"reference blocks.{index}"], expected)
        assert not torch.allclose(Flip.seen[f"stream blocks.{index}"], expected, rtol=0.1)
