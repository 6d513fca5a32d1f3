from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCheckpoint
from qdc.frontend.coverage import check_tensors, coverage, mark_kept
from qdc.frontend.tracer import trace
from qdc.ir.annotations import Kept
from qdc.ir.graph import LayerGraph
from qdc.models.families import BUILT_IN
from tests.frontend.toys import Toy, traced
from tests.support.checkpoints import published_shapes, write_checkpoint

BODY = "model.transformer"
DOWN = f"{BODY}.blocks.1.ff_out.weight"
Edit = Callable[[dict[str, Tensor]], None]


def opened(folder: Path) -> tuple[LayerGraph, Checkpoint]:
    checkpoint = Checkpoint(folder)
    module, facts = BUILT_IN.build(checkpoint.config)
    graph = trace(module, facts, checkpoint).graph
    mark_kept(graph)
    return graph, checkpoint


def refused(folder: Path, edit: Edit) -> InvalidCheckpoint:
    """The error of a checkpoint that ``edit`` has changed."""
    graph, checkpoint = opened(write_checkpoint(folder, edit=edit))
    with pytest.raises(InvalidCheckpoint) as caught:
        check_tensors(graph, checkpoint)
    return caught.value


def test_every_tensor_is_listed_with_its_fate(tmp_path: Path) -> None:
    graph, checkpoint = opened(write_checkpoint(tmp_path))
    check_tensors(graph, checkpoint)
    rows = coverage(graph)
    assert [row.tensor for row in rows] == list(published_shapes(checkpoint.config))
    assert {row.tensor for row in rows} == set(checkpoint.headers)
    for row in rows:
        assert row.weights == checkpoint.tensor(row.tensor).numel()
    kept = {row.tensor.removeprefix(f"{BODY}."): row.reason for row in rows if row.status == "kept"}
    assert kept == {
        "wte.weight": "embedding",
        **{f"blocks.{i}.{n}_norm.weight": "rms-norm" for i in range(2) for n in ("attn", "ff")},
        "ln_f.weight": "rms-norm",
        "ff_out.weight": "outside the repeated blocks",
    }
    assert sum(row.status == "quantized" for row in rows) == 14


def test_a_layer_that_a_pass_keeps_gives_its_reason(tmp_path: Path) -> None:
    graph, _ = opened(write_checkpoint(tmp_path))
    graph.annotate("blocks.1.ff_out", Kept(reason="protected by the user"))
    (row,) = [row for row in coverage(graph) if row.tensor == DOWN]
    assert (row.status, row.reason) == ("kept", "protected by the user")


def test_a_bias_is_kept() -> None:
    graph = traced(Toy).graph
    rows = {row.tensor: row.reason for row in coverage(graph)}
    assert rows["attn_out.bias"] == "bias"


def test_marking_leaves_the_blocks_alone(tmp_path: Path) -> None:
    graph, _ = opened(write_checkpoint(tmp_path))
    marked = [node.name for node in graph if graph.get(node.name, Kept) is not None]
    assert marked == ["ff_out"]


def test_unmapped_tensors_are_refused(tmp_path: Path) -> None:
    extra = [f"{BODY}.blocks.0.q_proj.bias", f"{BODY}.blocks.2.q_proj.weight"]
    error = refused(tmp_path, lambda t: t.update({name: torch.zeros(160) for name in extra}))
    assert "2 tensors are unmapped" in error.what
    assert error.where == tuple(extra)
    assert "variant" in error.help


def test_missing_tensors_are_refused(tmp_path: Path) -> None:
    gone = [DOWN, f"{BODY}.wte.weight"]

    def remove(tensors: dict[str, Tensor]) -> None:
        for name in gone:
            del tensors[name]

    error = refused(tmp_path, remove)
    assert "the checkpoint lacks 2 tensors of the model" in error.what
    assert error.where == tuple(gone)


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    def turn(tensors: dict[str, Tensor]) -> None:
        tensors[DOWN] = tensors[DOWN].T.contiguous()
        tensors[f"{BODY}.ln_f.weight"] = torch.ones(1, 160, dtype=torch.bfloat16)

    error = refused(tmp_path, turn)
    assert error.what == "tensors do not have the shape that config.json gives"
    assert sorted(error.where) == [
        f"{DOWN}: bf16[320,160] instead of (160, 320)",
        f"{BODY}.ln_f.weight: bf16[1,160] instead of (160,)",
    ]
    assert "see that config.json belongs to them" in error.help


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool], ids=str)
def test_integer_weights_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    names = [DOWN, f"{BODY}.ln_f.weight"]

    def convert(tensors: dict[str, Tensor]) -> None:
        for name in names:
            tensors[name] = tensors[name].to(dtype)

    error = refused(tmp_path, convert)
    assert error.what == "weights are not floating point"
    assert "the bf16, f16 or f32 checkpoint" in error.help
    assert sorted(place.split(":")[0] for place in error.where) == sorted(names)


def test_a_config_of_more_layers_is_noticed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, edit_config=lambda config: config.update(n_layers=3))
    graph, checkpoint = opened(folder)
    with pytest.raises(InvalidCheckpoint, match="lacks 9 tensors"):
        check_tensors(graph, checkpoint)
