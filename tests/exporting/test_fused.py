"""A family whose checkpoints hold q, k and v as one tensor: exports put the rows together again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import qdc
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, write_family
from tests.support.llada2 import FUSED, fused_state

SIZES = {"head_dim": 16, "rotary_dim": 8, "moe_intermediate_size": 32}
CASE = replace(CASES["llada2"], config={**CASES["llada2"].config, **SIZES})
"""Widths that are whole groups of 32."""


ROUND = "rtn-lower{bits=%d zero=packed group=32},pack"


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    files = [load_file(file) for file in folder.glob("*.safetensors")]
    return {name: tuple(tensor.shape) for each in files for name, tensor in each.items()}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fused")
    compile_tiny(write_family(folder / "model", CASE), folder / "out", ROUND % 4)
    return folder / "out"


def test_a_dense_export_has_the_published_names(artifact: Path, tmp_path: Path) -> None:
    report = qdc.export(artifact, out=tmp_path / "dense", dtype="f32", verify=True)
    published = CASE.shapes(CASE.config)
    assert shapes(tmp_path / "dense") == published
    assert report.tensors == len(published)
    loaded = {n: p.detach() for n, p in qdc.load(artifact, backend="reference").named_parameters()}
    expected = fused_state(CASE.config, loaded)
    (file,) = (tmp_path / "dense").glob("*.safetensors")
    for name, tensor in load_file(file).items():
        assert torch.equal(tensor, expected[name]), name
    tokens = torch.randint(0, 2048, (1, 12), generator=torch.Generator().manual_seed(0))
    again = qdc.load_original(tmp_path / "dense")
    with torch.no_grad():
        assert torch.equal(again(tokens), qdc.load(artifact, backend="reference")(tokens))


def test_packed_rows_are_put_together(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    qdc.export(artifact, out=tmp_path / "packed", format="compressed-tensors", verify=True)
    found = shapes(tmp_path / "packed")
    name = "model.layers.1.attention." + FUSED
    assert {n.removeprefix(f"{name}.") for n in found if n.startswith(name)} >= {
        "weight_packed",
        "weight_scale",
        "weight_shape",
    }
    rows, columns = CASE.shapes(CASE.config)[f"{name}.weight"]
    assert found[f"{name}.weight_packed"] == (rows, -(-columns * 4 // 32))
    stored: dict[str, Tensor] = {}
    for file in (tmp_path / "packed").glob("*.safetensors"):
        stored |= load_file(file)
    assert stored[f"{name}.weight_shape"].tolist() == [rows, columns]
    assert not any(f".{part}." in each for each in found for part in ("query", "key", "value"))
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert "model.layers.1.mlp.gate" in config["quantization_config"]["ignore"]
