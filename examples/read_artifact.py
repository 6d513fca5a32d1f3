"""Decode an artifact with numpy and safetensors alone: no torch, no qdc. See docs/format.md."""

import json
import math
import sys
from collections.abc import Mapping
from hashlib import shake_256
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

Array = np.ndarray[Any, Any]
DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError,
          SafetensorError)  # fmt: skip


def read(folder: Path) -> dict[str, Array]:
    """Decode every quantized layer: full path to ``float32[rows, columns]``.

    A rotation of a layer's inputs is multiplied out, so that the weight is for inputs as they are.
    Raises OSError for files that are missing, ValueError for those that are damaged.
    """
    try:
        return _read(folder)
    except DAMAGE as error:
        raise ValueError(f"{folder} is damaged: {type(error).__name__} {error}") from error


def _read(folder: Path) -> dict[str, Array]:
    config = load_json(folder / "config.json").get("quantization_config", {})
    if config.get("quant_method") != "qdc" or config["format_version"] not in (1, 2):
        raise ValueError(f"{folder} is no qdc artifact of format version 1 or 2")
    activations = config.get("activations", {})
    for path, does in activations.items():
        if does.keys() != {"rotation"}:
            raise ValueError(f"this reader knows no codes of inputs or outputs, as of {path}")
    index = load_json(folder / "model.safetensors.index.json")
    found: dict[str, dict[str, Array]] = {path: {} for path in config["layers"]}
    for name, shard in index["weight_map"].items():
        path, _, suffix = name.rpartition(".")
        if path in found and suffix != "bias":
            expect((folder / Path(shard).name).is_file(), shard)
            with safe_open(folder / Path(shard).name, framework="numpy") as file:
                found[path][suffix] = file.get_tensor(name)
    weights = {path: decode_layer(config["layers"][path], found[path]) for path in found}
    for path, does in activations.items():
        weights[path] = unrotated(weights[path], does["rotation"])
    return weights


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file, which is no pipe and no device, and not endless."""
    expect(not path.exists() or (path.is_file() and path.stat().st_size <= 1 << 25), path.name)
    text = path.read_text(encoding="utf-8")
    expect(text.count("[") + text.count("{") <= 1 << 18, path.name)  # a million layers, of no model
    found: dict[str, Any] = json.loads(text)
    return found


def decode_layer(layer: Mapping[str, Any], stored: Mapping[str, Array]) -> Array:
    """``float32[rows, columns]`` from an entry of ``layers`` and the layer's tensors."""
    known = {"multi-binary": multi_binary, "uniform": uniform}
    if layer["codec"] not in known:
        raise ValueError(f"this reader knows {' and '.join(known)}, not {layer['codec']!r}")
    return known[layer["codec"]](layer, stored)


def unrotated(weight: Array, seed: int) -> Array:
    """``W Q^T`` in float32: what the layer multiplies inputs by that are not rotated."""
    rows, columns = weight.shape
    size, step = columns & -columns, 1
    expect(isinstance(seed, int) and 0 <= seed < 1 << 31 and size > 1, "rotation")
    while step < size:
        pairs = weight.reshape(rows, -1, 2, step)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        weight = np.stack([first + second, first - second], axis=2).reshape(rows, columns)
        step *= 2
    drawn = shake_256(b"str:rotation signs\0int:%d" % seed).digest(3 * columns)
    signs = np.where(np.frombuffer(drawn, np.uint8)[::3] < 128, np.float32(-1), np.float32(1))
    return weight * np.float32(1 / math.sqrt(size)) * signs


def multi_binary(layer: Mapping[str, Any], stored: Mapping[str, Array]) -> Array:
    """Add the components of each block: (row scale * column scale) * sign, in float32."""
    rows, columns, block, orders = (layer[key] for key in ("rows", "columns", "block", "orders"))
    planes, total = stored["planes"], sum(orders)
    row, col = (scales(layer, stored, kind) for kind in ("row", "col"))
    expect(planes.shape == (rows, total, block // 8), "planes")
    expect(row.shape == (rows, total) and bool(np.isfinite(row).all()), "row_scale")
    expect(col.shape == (1, total, block) and bool(np.isfinite(col).all()), "col_scale")
    expect(stored["orders"].tolist() == orders and len(orders) == -(-columns // block), "orders")
    dense, plane = np.empty((rows, columns), np.float32), 0
    for left, order in zip(range(0, columns, block), orders, strict=True):
        part = dense[:, left : left + block]
        for k in range(plane, plane + order):
            ones = np.unpackbits(planes[:, k], axis=1, bitorder="little")[:, : part.shape[1]]
            term = np.outer(row[:, k], col[0, k, : part.shape[1]]) * (ones * np.float32(2) - 1)
            part[:] = term if k == plane else part + term
        plane += order
    return dense


def scales(layer: Mapping[str, Any], stored: Mapping[str, Array], kind: str) -> Array:
    """Scales in float32; codes of 8 bits stand beside their plane's peak, rounded to float16."""
    found, code = stored[f"{kind}_scale"], layer.get("scale_code", "linear")
    short = layer.get("scale_bits", 16) == 8
    expect(code in (("linear", "logarithmic") if short else ("linear",)), "scale_code")
    if short:
        peak = stored[f"{kind}_peak"]
        expect(peak.shape == (1, found.shape[1], 1)[: found.ndim], f"{kind}_peak")
        expect(found.dtype == np.uint8, f"{kind}_scale")
        if code == "linear":
            found = (found.astype("f4") * peak.astype("f4") / np.float32(255)).astype("f2")
        else:
            octaves, steps = np.divmod(found.astype(np.int64) - 255, 32)
            power = (2.0 ** (steps / 32)).astype("f4") * (2.0**octaves).astype("f4")
            found = np.where(found > 0, power * peak.astype("f4"), 0).astype("f2")
    expect(found.dtype == np.float16, f"{kind}_scale")
    return found.astype("f4")


def uniform(layer: Mapping[str, Any], stored: Mapping[str, Array]) -> Array:
    """``scale * code + minimum`` in float32; a packed zero point gives ``-scale * zero``."""
    rows, columns, group, bits = (layer[key] for key in ("rows", "columns", "group", "bits"))
    groups, scale = -(-columns // group), stored["scale"].astype("f4")
    expect(stored["codes"].shape == (rows, groups, group * bits // 8), "codes")
    expect(scale.shape == (rows, groups) and bool(np.isfinite(scale).all()), "scale")
    if layer.get("zero", "float") == "packed":
        expect(stored["zero"].shape == (rows, -(-groups * bits // 8)), "zero")
        minimum = 0 - scale * fields(stored["zero"], bits)[:, :groups]
    else:
        minimum = stored["minimum"].astype("f4")
        expect(minimum.shape == scale.shape and bool(np.isfinite(minimum).all()), "minimum")
    dense: Array = scale[..., None] * fields(stored["codes"], bits) + minimum[..., None]
    return dense.reshape(rows, groups * group)[:, :columns]


def fields(packed: Array, bits: int) -> Array:
    """Bit fields of the last dimension as float32, the lowest of each byte first."""
    split = packed[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8(2**bits - 1)
    return split.reshape(*packed.shape[:-1], -1).astype("f4")


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
