"""The second front end: every linear, every stage, and the same numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qdc.checkpoint.folder import Checkpoint
from qdc.frontend.calls import NodeCalls
from qdc.frontend.opening import open_model
from qdc.frontend.tracer import Program
from qdc.ir.dump import from_bytes, to_bytes
from qdc.ir.verify import verify
from qdc.pipeline.registry import standard_registry
from qdc.streaming.original import original_stream
from tests.support.natives import CONFIGURATIONS, bidirectional, write_native

DENSE = ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"]
EXPERT = ["gate_proj up_proj", "down_proj"]
STAGES = {
    "bert": ["query key value", "dense", "dense", "dense"],
    "modernbert": ["Wqkv", "Wo", "Wi", "Wo"],
    "llama": DENSE,
    "qwen2": DENSE,
    "qwen3-moe": [*DENSE[:2], *EXPERT, *EXPERT, *EXPERT],
}
Opened = tuple[str, Path, Checkpoint, Program]


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    kind: str = request.param
    folder = write_native(tmp_path_factory.mktemp(kind) / "model", kind)
    return kind, folder, *open_model(folder, "export")


def streamed(program: Program, checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    """The result of the last node, reached stage by stage."""
    stream = original_stream(program, checkpoint, [tokens], torch.device("cpu"))
    for region in program.graph.regions:
        stream.start(region)
        for stage in program.graph.waves[region.name].each():
            stream.enter(stage)
        stream.leave(region)
    last = list(program.graph)[-1].name
    (found,) = stream.compute((last,))
    return found[last]


def test_streams_what_the_native_class_computes(opened: Opened) -> None:
    """For two batches and lengths, neither of which is that of the export."""
    kind, folder, checkpoint, program = opened
    native = bidirectional(folder, kind)
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 7), (5, 30)):
        tokens = torch.randint(2, 2048, shape, generator=generator)
        with torch.no_grad():
            expected = native(input_ids=tokens).logits
        found = streamed(program, checkpoint, tokens)
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_every_linear_of_the_module_is_a_node(opened: Opened) -> None:
    _, _, _, program = opened
    linears = {n for n, m in program.module.named_modules() if isinstance(m, nn.Linear)}
    assert {node.path for node in program.graph.linears()} == linears
    for node in program.graph.linears():
        assert node.weight.shape == tuple(program.module.get_parameter(f"{node.path}.weight").shape)


def test_every_tensor_of_the_checkpoint_is_read(opened: Opened) -> None:
    _, _, checkpoint, program = opened
    read = {p.name for node in program.graph for p in node.parameters}
    assert read == set(checkpoint.headers)
    assert not checkpoint.left_out


def test_stages_are_the_linears_that_read_one_value(opened: Opened) -> None:
    kind, _, _, program = opened
    for region in program.graph.regions:
        stages = [[name.rpartition(".")[2] for name in s.layers] for s in region.stages]
        assert [" ".join(stage) for stage in stages] == STAGES[kind]


def test_the_graph_is_valid_and_survives_a_dump(opened: Opened) -> None:
    _, _, _, program = opened
    verify(program.graph)
    assert from_bytes(to_bytes(program.graph), standard_registry().annotations()).structure == (
        program.graph.structure
    )
    assert all(isinstance(node, NodeCalls) for node in program.nodes.values())


def test_leaves_out_what_changes_nothing(opened: Opened) -> None:
    _, _, _, program = opened
    operations = {node.op for node in program.graph}
    assert operations.isdisjoint({"dropout", "detach", "alias", "sym-size", "getitem"})
    assert {"embedding", "linear", "attention", "add"} <= operations


def test_what_an_expert_reads_are_the_tokens_routed_to_it(opened: Opened) -> None:
    kind, _, _, program = opened
    routed = {node.name for node in program.graph.linears() if node.type.shape[0] == "N"}
    assert routed == {node.name for node in program.graph.linears() if ".experts." in node.name}
    routers = [node.path for node in program.graph if node.op == "router"]
    if kind == "qwen3-moe":
        assert len(routed) == 9
        assert routers == ["model.layers.0.mlp.gate"]
        assert {node.op for node in program.graph} >= {"rows", "take", "give", "routing"}
    else:
        assert not routed
        assert not routers
