import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from qdc.checkpoint.folder import Checkpoint
from qdc.frontend.coverage import mark_kept
from qdc.frontend.tracer import Program, trace
from qdc.ir.printer import render
from qdc.ir.verify import verify
from qdc.models.families import BUILT_IN
from tests.conftest import Golden
from tests.frontend.toys import Block, Toy, traced
from tests.support.checkpoints import write_checkpoint

STAGES = [
    ("attn_norm", ("q_proj", "k_proj", "v_proj")),
    ("attention", ("attn_out",)),
    ("ff_norm", ("ff_proj", "up_proj")),
    ("mul", ("ff_out",)),
]
LLADA_8B = {
    "architectures": ["LLaDAModelLM"],
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12288,
    "max_sequence_length": 4096,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "mask_token_id": 126336,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llada"), n_layers=3, n_kv_heads=1)


@pytest.fixture(scope="module")
def program(folder: Path) -> Program:
    checkpoint = Checkpoint(folder)
    module, facts = BUILT_IN.build(checkpoint.config)
    return trace(module, facts, checkpoint)


def test_text_of_a_traced_model(golden: Golden, program: Program) -> None:
    golden(render(program.graph))


def test_the_traced_graph_is_valid(program: Program) -> None:
    verify(program.graph)


def test_all_linears_are_found(program: Program) -> None:
    names = [node.name for node in program.graph.linears()]
    leaves = [leaf for _, layers in STAGES for leaf in layers]
    assert names == [*(f"blocks.{i}.{leaf}" for i in range(3) for leaf in leaves), "ff_out"]


def test_regions_and_stages_are_in_execution_order(program: Program) -> None:
    for index, region in enumerate(program.graph.regions):
        at = f"blocks.{index}"
        assert region.name == at
        assert [(stage.value, stage.layers) for stage in region.stages] == [
            (f"{at}.{value}", tuple(f"{at}.{layer}" for layer in layers))
            for value, layers in STAGES
        ]
    assert len(program.graph.regions) == 3


def test_the_head_is_kept_although_it_shares_its_name(program: Program) -> None:
    graph = program.graph
    mark_kept(graph)
    quantized = {node.name for node in graph.layers()}
    assert "ff_out" not in quantized
    assert {f"blocks.{i}.ff_out" for i in range(3)} <= quantized
    assert len(quantized) == 21


def test_full_paths_are_the_checkpoints_keys(program: Program) -> None:
    graph = program.graph
    assert graph.structure.prefix == "model.transformer."
    for node in graph.linears():
        assert node.path == f"model.transformer.{node.name}"
        assert node.weight.name == f"{node.path}.weight"
        assert node.weight.dtype == "bf16"


def test_batch_and_length_are_names(program: Program) -> None:
    graph = program.graph
    assert str(graph["input_ids"].type) == "i64[B,L]"
    assert str(graph["blocks.1.k_proj"].type) == "f32[B,L,80]"
    assert str(graph["blocks.1.rotary"].type) == "f32[B,L,2,80]"
    assert str(graph["ff_out"].type) == "f32[B,L,2048]"


def test_without_a_checkpoint_the_dtypes_are_the_modules(folder: Path) -> None:
    module, facts = BUILT_IN.build(Checkpoint(folder).config)
    assert trace(module, facts).graph["blocks.0.q_proj"].weight.dtype == "f32"


def test_the_nodes_execute_the_model(folder: Path, program: Program) -> None:
    """Run for another batch and length than it was traced with."""
    checkpoint = Checkpoint(folder)
    module, _ = BUILT_IN.build(checkpoint.config)
    module = module.to_empty(device="cpu")
    module.load_state_dict({name: checkpoint.tensor(name) for name in checkpoint.headers})
    tokens = torch.randint(0, 2048, (2, 7), generator=torch.Generator().manual_seed(0))
    first = next(iter(program.nodes.values()))
    assert isinstance(first, fx.Node)
    graph = first.graph
    with torch.no_grad():
        found = fx.Interpreter(module, graph=graph).run(tokens, None)
        assert torch.equal(found, module(tokens))
    assert set(program.nodes) == {node.name for node in program.graph}


def test_tracing_reads_no_tensor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> Tensor:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(Checkpoint, "tensor", read)
    checkpoint = Checkpoint(folder)
    module, facts = BUILT_IN.build(checkpoint.config)
    trace(module, facts, checkpoint)
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


def test_the_8b_model_is_traced_without_its_weights() -> None:
    """Counts of LLaDA-8B: 224 layers, and 9,216 blocks of 128 columns."""
    before = time.perf_counter()
    module, facts = BUILT_IN.build(LLADA_8B)
    graph = trace(module, facts).graph
    mark_kept(graph)
    assert time.perf_counter() - before < 60
    layers = list(graph.layers())
    assert len(layers) == 224
    assert len(list(graph.linears())) == 225
    assert sum(node.rows * node.columns for node in layers) == 6_979_321_856
    assert sum(-(-node.columns // 128) for node in layers) == 9_216
    assert sum(p.elements({}) for node in graph for p in node.parameters) == 8_015_581_184
    verify(graph)


class Crowded(Toy):
    """Modules and functions whose numbered names would meet."""

    def __init__(self) -> None:
        super().__init__([Sums(), Sums()])


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add = nn.Linear(8, 8)
        self.add_2 = nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + 1
        hidden = self.add_2(hidden + 1)
        hidden = hidden + 1
        out: Tensor = self.add(hidden) + hidden
        return out


def test_names_are_unique() -> None:
    graph = traced(Crowded).graph
    verify(graph)
    assert graph["junk.0.add_2"].path == "junk.0.add_2"
    assert sum(node.op == "linear" for node in graph) == 5


class Flat(Toy):
    """Batch and length are merged for the blocks."""

    def stream(self, hidden: Tensor) -> Tensor:
        return super().stream(hidden.flatten(0, 1))


def test_a_merged_batch_has_a_name() -> None:
    graph = traced(Flat).graph
    assert str(graph["junk.0.lm_head"].type) == "f32[B*L,8]"
    verify(graph)


def test_a_model_of_nothing_but_blocks() -> None:
    """Then the list is the common start of all paths, and names start with a number."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.junk = nn.ModuleList([Block(), Block()])

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            hidden = input_ids.unsqueeze(-1).expand(-1, -1, 8).float()
            for member in self.junk:
                hidden = member(hidden)
            return hidden

    graph = traced(Bare).graph
    assert graph.structure.prefix == "junk."
    assert [region.name for region in graph.regions] == ["0", "1"]
    verify(graph)
