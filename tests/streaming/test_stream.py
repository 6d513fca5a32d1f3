"""The calibration stream against a plain forward with hooks."""

from pathlib import Path

import pytest
import torch

from tests.support.streams import HIDDEN, LENGTH, WIDTH, Model, small_model


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return small_model(tmp_path / "model")


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
            model.rewrite(layer)
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


def test_going_past_the_end_does_nothing(model: Model) -> None:
    stream = model.stream()
    first, last = model.regions[0], model.regions[-1]
    stream.leave(first)
    calls, boundary = stream.linear_calls, stream.boundary
    stream.leave(first)
    stream.leave(last)
    assert (stream.linear_calls, stream.boundary) == (calls, boundary)


def test_the_samples_stay_readable(model: Model) -> None:
    stream = model.stream()
    stream.enter(model.stages()[-1])
    assert torch.equal(stream.tokens, torch.cat(model.batches))


def test_states_held_in_bf16_are_half_as_large_and_computed_with_in_fp32(model: Model) -> None:
    wide, narrow = model.stream(), model.stream(held=torch.bfloat16)
    stage = model.stages()[-1]
    for stream in (wide, narrow):
        stream.enter(stage)
    floats = [v for held in narrow.kept for v in held.values() if v.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.bfloat16}
    assert 2 * narrow.kept_bytes() == wide.kept_bytes()
    for exact, rounded in zip(wide.values(stage), narrow.values(stage), strict=True):
        assert rounded.dtype == torch.float32
        assert torch.allclose(rounded, exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))
        assert not torch.equal(rounded, exact)
