"""Decode an artifact with numpy and safetensors alone: no torch, no qdc. See docs/format.md."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

Array = np.ndarray[Any, Any]


def read(folder: Path) -> dict[str, Array]:
    """Decode every quantized layer: full path to ``float32[rows, columns]``."""
    config = json.loads((folder / "config.json").read_text("utf-8")).get("quantization_config", {})
    if config.get("quant_method") != "qdc" or config["format_version"] != 1:
        raise ValueError(f"{folder} is no qdc artifact of format version 1")
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Array]] = {path: {} for path in config["layers"]}
    for name, shard in index["weight_map"].items():
        path, _, suffix = name.rpartition(".")
        if path in found and suffix != "bias":
            with safe_open(folder / Path(shard).name, framework="numpy") as file:
                found[path][suffix] = file.get_tensor(name)
    return {path: decode_layer(config["layers"][path], found[path]) for path in found}


def decode_layer(layer: Mapping[str, Any], stored: Mapping[str, Array]) -> Array:
    """``float32[rows, columns]`` from an entry of ``layers`` and the layer's tensors."""
    return {"multi-binary": multi_binary, "uniform": uniform}[layer["codec"]](layer, stored)


def multi_binary(layer: Mapping[str, Any], stored: Mapping[str, Array]) -> Array:
    """Add the components of each block: (row scale * column scale) * sign, in float32."""
    rows, columns, block, orders = (layer[key] for key in ("rows", "columns", "block", "orders"))
    planes, total = stored["planes"], sum(orders)
    row, col = stored["row_scale"].astype("f4"), stored["col_scale"].astype("f4")
    expect(planes.shape == (rows, total, block // 8), "planes")
    expect(row.shape == (rows, total) and bool(np.isfinite(row).all()), "row_scale")
    expect(col.shape == (1, total, block) and bool(np.isfinite(col).all()), "col_scale")
    expect(stored["orders"].tolist() == orders, "orders")
    dense, plane = np.empty((rows, columns), np.float32), 0
    for left, order in zip(range(0, columns, block), orders, strict=True):
        part = dense[:, left : left + block]
        for k in range(plane, plane + order):
            bits = np.unpackbits(planes[:, k], axis=1, bitorder="little")[:, : part.shape[1]]
            term = np.outer(row[:, k], col[0, k, : part.shape[1]]) * (bits * np.float32(2) - 1)
            part[:] = term if k == plane else part + term
        plane += order
    return dense


def uniform(layer: Mapping[str, Any], stored: Mapping[str, Array]) -> Array:
    """``scale * code + minimum`` in float32."""
    rows, columns, group, bits = (layer[key] for key in ("rows", "columns", "group", "bits"))
    codes, groups = stored["codes"], -(-columns // group)
    scale, minimum = (stored[name].astype("f4")[..., None] for name in ("scale", "minimum"))
    expect(codes.shape == (rows, groups, group * bits // 8), "codes")
    expect(scale.shape == minimum.shape == (rows, groups, 1), "scale and minimum")
    fields = codes[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8(2**bits - 1)
    dense: Array = scale * fields.reshape(rows, groups, group).astype("f4") + minimum
    return dense.reshape(rows, groups * group)[:, :columns]


def expect(right: bool, what: str) -> None:
    """Refuse a tensor that is not what the format says."""
    if not right:
        raise ValueError(f"{what} is damaged")


if __name__ == "__main__":
    try:
        weights = read(Path(sys.argv[1]))
    except (IndexError, OSError, ValueError) as error:
        sys.exit(str(error) if sys.argv[1:] else "usage: python examples/read_artifact.py OUT")
    for name, weight in weights.items():
        print(f"{name:<40} {weight.dtype}{list(weight.shape)}   deviation {weight.std():.4f}")
