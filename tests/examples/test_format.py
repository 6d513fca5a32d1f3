"""What docs/format.md says of slicing and joining, done to an artifact with the numpy reader."""

import itertools
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import PLAIN, compile_tiny

READER = Path(__file__).parents[2] / "examples" / "read_artifact.py"
BLOCK = "model.transformer.blocks.0"
MIXED = PLAIN.replace("allocate", "allocate{ratio=0.5}")
PASSES = {
    "multi-binary": MIXED,
    "8-bit scales": MIXED.replace("lower", "lower{scale-bits=8}"),
    "uniform": "rtn-lower,pack",
    "packed zero points": "rtn-lower{bits=4 zero=packed},pack",
}
SHARED = {"orders", "col_scale", "row_peak", "col_peak"}
DECODE = runpy.run_path(str(READER))["decode_layer"]
Stored = dict[str, Any]


@pytest.fixture(scope="module", params=PASSES)
def layers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Stored, Stored]]:
    """For each layer of one region: its entry in the configuration, and its tensors."""
    folder = tmp_path_factory.mktemp("layers")
    model = write_checkpoint(
        folder / "m", d_model=256, mlp_hidden_size=520, n_layers=1, dtype=torch.float16
    )
    compile_tiny(model, folder / "out", PASSES[request.param])
    entries = json.loads((folder / "out" / "config.json").read_text())["quantization_config"][
        "layers"
    ]
    tensors = load_file(folder / "out" / "model-00001-of-00002.safetensors")
    return {
        path.removeprefix(f"{BLOCK}."): (
            entry,
            {n.rpartition(".")[2]: t for n, t in tensors.items() if n.rpartition(".")[0] == path},
        )
        for path, entry in entries.items()
    }


@pytest.mark.parametrize("name", ["q_proj", "ff_out"])
def test_rows_are_a_slice_of_the_first_dimension(
    layers: dict[str, tuple[Stored, Stored]], name: str
) -> None:
    entry, stored = layers[name]
    part = {
        suffix: tensor if suffix in SHARED else tensor[64:128] for suffix, tensor in stored.items()
    }
    found = DECODE({**entry, "rows": 64}, part)
    assert np.array_equal(found, DECODE(entry, stored)[64:128])


@pytest.mark.parametrize(("first", "last"), [(0, 2), (1, 4), (3, 5), (4, 5)])
def test_columns_are_a_slice_at_block_boundaries(
    layers: dict[str, tuple[Stored, Stored]], first: int, last: int
) -> None:
    entry, stored = layers["ff_out"]
    assert entry["columns"] == 520
    left, right = 128 * first, min(128 * last, 520)
    if entry["codec"] == "uniform":
        fields, part = {}, {suffix: tensor[:, first:last] for suffix, tensor in stored.items()}
        if "zero" in stored:
            if first % (8 // entry["bits"]):
                pytest.skip("packed zero points are cut at whole bytes")
            part["zero"] = stored["zero"][:, first * entry["bits"] // 8 :][
                :, : -(-(last - first) * entry["bits"] // 8)
            ]
    else:
        orders = entry["orders"]
        planes = slice(sum(orders[:first]), sum(orders[:last]))
        part = {
            suffix: tensor[:, planes] for suffix, tensor in stored.items() if suffix != "orders"
        }
        part["orders"] = stored["orders"][first:last]
        fields = {"orders": orders[first:last]}
    found = DECODE({**entry, "columns": right - left, **fields}, part)
    assert np.array_equal(found, DECODE(entry, stored)[:, left:right])


@pytest.mark.parametrize("names", [("q_proj", "k_proj", "v_proj"), ("ff_proj", "up_proj")])
def test_layers_of_a_stage_join_along_the_rows(
    layers: dict[str, tuple[Stored, Stored]], names: tuple[str, ...]
) -> None:
    entries, tensors = zip(*(layers[name] for name in names), strict=True)
    whole = np.concatenate([DECODE(*layers[name]) for name in names])
    rows = [entry["rows"] for entry in entries]
    shared = {suffix for suffix in tensors[0] if suffix == "orders"}
    joined = {s: np.concatenate([t[s] for t in tensors]) for s in tensors[0].keys() - shared}
    if entries[0]["codec"] == "uniform":
        found = DECODE({**entries[0], "rows": sum(rows)}, joined)
        assert np.array_equal(found, whole)
        return
    assert len({tuple(entry["orders"]) for entry in entries}) == 1
    assert joined["col_scale"].shape == (len(names), sum(entries[0]["orders"]), 128)
    for segment, (start, end) in enumerate(itertools.pairwise(itertools.accumulate([0, *rows]))):
        part = {
            "planes": joined["planes"][start:end],
            "row_scale": joined["row_scale"][start:end],
            "orders": tensors[0]["orders"],
        }
        part |= {s: joined[s][segment : segment + 1] for s in SHARED & joined.keys()}
        assert np.array_equal(DECODE({**entries[0], "rows": end - start}, part), whole[start:end])


def test_stored_bytes_are_as_the_page_counts_them(
    layers: dict[str, tuple[Stored, Stored]],
) -> None:
    for entry, stored in layers.values():
        rows, columns = entry["rows"], entry["columns"]
        if entry["codec"] == "uniform":
            groups = -(-columns // entry["group"])
            expected = rows * groups * entry["group"] * entry["bits"] // 8 + rows * groups * 2
            packed = entry.get("zero") == "packed"
            expected += rows * (-(-groups * entry["bits"] // 8) if packed else 2 * groups)
        else:
            planes, block = sum(entry["orders"]), entry["block"]
            size = entry["scale_bits"] // 8
            expected = rows * planes * block // 8 + planes * (rows + block) * size
            expected += len(entry["orders"]) + (4 * planes if size == 1 else 0)
        assert sum(tensor.nbytes for tensor in stored.values()) == expected


def test_padding_is_zero(layers: dict[str, tuple[Stored, Stored]]) -> None:
    entry, stored = layers["ff_out"]
    if entry["codec"] == "uniform":
        assert not stored["codes"][:, -1, 8 * entry["bits"] // 8 :].any()
    else:
        order = entry["orders"][-1]
        assert not stored["planes"][:, -order:, 1:].any()
        assert not stored["col_scale"][:, -order:, 8:].any()
