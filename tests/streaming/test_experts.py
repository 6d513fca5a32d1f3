"""The calibration stream through experts: each computes and is shown its own tokens."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from qdc.ir.graph import Stage
from qdc.ir.routing import rows_of
from qdc.pipeline.plan import StageOrder
from qdc.streaming.stream import Stream
from tests.support.experts import HIDDEN, WIDTH, routed, write_mixture
from tests.support.streams import LENGTH, Model, model_of

EXPERTS, COUNT = 4, 2


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return model_of(write_mixture(tmp_path / "model", experts=EXPERTS, count=COUNT))


def expert_stages(model: Model) -> list[Stage]:
    return [stage for stage in model.stages() if ".experts." in stage.layers[0]]


def rows(model: Model, stage: Stage) -> str:
    found = rows_of(model.program.graph, stage.value)
    assert found is not None
    return found


def test_each_expert_reads_its_own_tokens(model: Model) -> None:
    """The values are those of a plain forward, and of the router's best scores."""
    stream = model.stream()
    for stage in model.stages():
        stream.enter(stage)
        for layer in stage.layers:
            torch.testing.assert_close(list(stream.values(stage)), model.inputs(layer))
    block, path = "model.layers.1.mlp", "model.layers.1.post_attention_layernorm"
    gate = model.plain.get_parameter(f"{block}.gate.weight")
    for expert in range(EXPERTS):
        read = model.inputs(f"{block}.experts.{expert}.up_proj")
        for value, hidden in zip(read, model.outputs(path), strict=True):
            places = routed(gate, hidden, COUNT, expert)
            torch.testing.assert_close(value, hidden.flatten(0, 1)[places])


def test_values_follow_the_weights_as_they_are_replaced(model: Model) -> None:
    stream = model.stream()
    for stage in model.stages():
        stream.enter(stage)
        torch.testing.assert_close(list(stream.values(stage)), model.inputs(stage.layers[0]))
        for layer in stage.layers:
            model.rewrite(layer)


def test_only_routed_tokens_are_computed(model: Model) -> None:
    stream = model.stream()
    stages = model.stages()
    stream.enter(stages[-1])
    block = "model.layers.0.mlp.experts"
    seen = sum(len(value) for e in range(EXPERTS) for value in model.inputs(f"{block}.{e}.up_proj"))
    assert seen == COUNT * model.samples * LENGTH
    dense = 8 * model.samples
    # Of both blocks all linears but the down projections of the last, which are one wave.
    assert stream.linear_calls == pytest.approx(dense + 5 * seen / LENGTH)


@pytest.mark.parametrize("experts", [3, 6])
def test_what_is_held_does_not_grow_with_the_experts(tmp_path: Path, experts: int) -> None:
    """Before the experts' inputs the residual stream and one weight for each expert; before their
    outputs what all of these read too: a row for each token and expert that it is routed to."""
    model = model_of(write_mixture(tmp_path / "model", experts=experts))
    stream, tokens = model.stream(), model.samples * LENGTH
    for stage in expert_stages(model):
        stream.enter(stage)
        own = COUNT * HIDDEN if "down" in stage.layers[0] else 0
        assert stream.kept_bytes() == 4 * tokens * (WIDTH + experts + own)


def test_rounded_states_do_not_change_who_gets_a_token(model: Model) -> None:
    """Held in bf16, scores that nearly tie could change places; weights of 0 stay 0."""
    stages = expert_stages(model)[: 2 * EXPERTS]
    stream = model.stream(held=torch.bfloat16)
    stream.enter(stages[0])
    names = tuple(rows(model, stage) for stage in stages)
    first = list(stream.compute(names))
    for stage in stages:
        stream.enter(stage)
        name = rows(model, stage)
        for before, now in zip(first, stream.compute((name,)), strict=True):
            assert torch.equal(before[name], now[name])


def everything(stream: Stream, model: Model, stage: Stage) -> list[Tensor]:
    name = rows(model, stage)
    return [found[stage.value] for found in stream.compute((stage.value,), everywhere=(name,))]


@pytest.mark.parametrize("expert", [0, EXPERTS - 1])
def test_an_expert_can_be_fed_with_every_token(model: Model, expert: int) -> None:
    stages = expert_stages(model)[2 * EXPERTS :]
    gate_up, down = stages[expert], stages[EXPERTS + expert]
    hidden = model.outputs("model.layers.1.post_attention_layernorm")
    stream = model.stream()
    stream.enter(gate_up)
    routed_only = list(stream.values(gate_up))
    found = everything(stream, model, gate_up)
    torch.testing.assert_close(found, [value.flatten(0, 1) for value in hidden])
    torch.testing.assert_close(list(stream.values(gate_up)), routed_only)
    for layer in gate_up.layers:
        model.rewrite(layer)
    stream.enter(down)
    gate, up = (model.weights(layer)["weight"] for layer in gate_up.layers)
    due = [silu(value @ gate.T) * (value @ up.T) for value in found]
    torch.testing.assert_close(everything(stream, model, down), due)
    torch.testing.assert_close(list(stream.values(down)), model.inputs(down.layers[0]))


def test_an_expert_without_tokens_is_no_obstacle(tmp_path: Path) -> None:
    model = model_of(write_mixture(tmp_path / "model", count=1, idle=True))
    stream = model.stream()
    for stage in model.stages():
        stream.enter(stage)
        values = list(stream.values(stage))
        torch.testing.assert_close(values, model.inputs(stage.layers[0]))
        if ".experts.3." in stage.layers[0]:
            assert {len(value) for value in values} == {0}
            assert {len(v) for v in everything(stream, model, stage)} == {2 * LENGTH, LENGTH}


def test_the_stream_goes_back_to_where_it_entered(model: Model) -> None:
    region, stages = model.regions[0], expert_stages(model)
    stream = model.stream(returns=True)
    stream.start(region)
    stream.enter(stages[3])
    model.rewrite(region.stages[0].layers[0])
    assert stream.passed(region.stages[0].layers[0])
    stream.rewind()
    stream.enter(stages[1])
    torch.testing.assert_close(list(stream.values(stages[1])), model.inputs(stages[1].layers[0]))


def test_what_later_nodes_read_is_found_for_every_boundary(model: Model) -> None:
    order = model.stream().order
    for boundary in range(len(order.names) + 1):
        future = set(order.names[boundary:])
        due = {
            name
            for name in order.names[:boundary]
            if name not in order.absent and future & set(order.edges.successors(name))
        }
        assert order.read_after(boundary) == due


def test_outputs_first_takes_the_experts_outputs_first(model: Model) -> None:
    region = model.regions[0]
    waves = StageOrder(order="outputs-first").waves(model.program.graph, region)
    names = [[stage.layers[0].removeprefix(f"{region.name}.") for stage in wave] for wave in waves]
    experts = [f"mlp.experts.{number}" for number in range(EXPERTS)]
    assert names == [
        ["self_attn.o_proj"],
        [f"{expert}.down_proj" for expert in experts],
        ["self_attn.q_proj"],
        [f"{expert}.gate_proj" for expert in experts],
    ]
