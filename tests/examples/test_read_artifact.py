"""The numpy reader decodes what ``qdc.load`` decodes, bit for bit."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qdc
from qdc.numerics.hadamard import RandomHadamard
from tests.support.checkpoints import write_checkpoint
from tests.support.commands import python
from tests.support.compiles import PLAIN, compile_tiny

READER = Path(__file__).parents[2] / "examples" / "read_artifact.py"
PIPELINES = {
    "mixed orders": PLAIN.replace("allocate", "allocate{ratio=0.5}"),
    "8-bit scales": PLAIN.replace("allocate,", "allocate{ratio=0.5},").replace(
        "lower", "lower{scale-bits=8}"
    ),
    "rotated inputs": PLAIN.replace("stages(", "stages(rotate,"),
    "one order of 4": PLAIN.replace("allocate", "allocate{base=4 ratio=0}"),
    "one order of 1": PLAIN.replace("allocate", "allocate{base=1 ratio=0}"),
    "two bits": "data-free",
    "one bit": "rtn-lower{bits=1 group=24},pack",
    "eight bits": "rtn-lower{bits=8 group=64},pack",
    "packed zero points": "rtn-lower{group=24 search=clip zero=packed},pack",
    "packed zero points of one bit": "rtn-lower{bits=1 group=24 zero=packed},pack",
    "packed zero points of four bits": "rtn-lower{bits=4 group=24 zero=packed},pack",
    "vocabulary in eight bits": "quantize-vocab,data-free",
    "vocabulary in four bits": "data-free,quantize-vocab{bits=4 group=96}",
}


def wide(folder: Path) -> Path:
    """A checkpoint of one region whose layers have full and ragged last blocks."""
    return write_checkpoint(folder, d_model=256, mlp_hidden_size=520, n_layers=1, n_kv_heads=1)


@pytest.fixture(scope="module")
def decoded() -> dict[str, Callable[..., dict[str, np.ndarray]]]:
    return runpy.run_path(str(READER))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with a ragged last block and four widths of layers."""
    folder = tmp_path_factory.mktemp("artifact")
    compile_tiny(wide(folder / "m"), folder / "out", PIPELINES["mixed orders"])
    return folder / "out"


def same(folder: Path, found: dict[str, np.ndarray]) -> bool:
    """Whether the weights are those of ``qdc.load``, minus zero and zero told apart.

    Those of layers that read rotated inputs have the rotation multiplied out.
    """
    state = qdc.load(folder, backend="reference").state_dict()
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert set(found) == set(config["layers"])
    for path, does in config.get("activations", {}).items():
        stored = state[f"{path}.weight"]
        rotation = RandomHadamard.of(stored.shape[1], does["rotation"])
        state[f"{path}.weight"] = rotation.inverse(stored)
    return all(
        weight.dtype == np.float32
        and np.array_equal(
            np.ascontiguousarray(weight).view(np.int32),
            state[f"{path}.weight"].numpy().view(np.int32),
        )
        for path, weight in found.items()
    )


@pytest.mark.parametrize("passes", PIPELINES.values(), ids=PIPELINES.keys())
def test_weights_equal_those_of_load(
    decoded: dict[str, Callable[..., dict[str, np.ndarray]]], passes: str, tmp_path: Path
) -> None:
    model = wide(tmp_path / "m")
    compile_tiny(model, tmp_path / "out", passes)
    found = decoded["read"](tmp_path / "out")
    assert len(found) == (9 if "vocab" in passes else 7)
    assert same(tmp_path / "out", found)


def test_orders_differ_in_the_artifact_that_is_compared(artifact: Path) -> None:
    layers = json.loads((artifact / "config.json").read_text())["quantization_config"]["layers"]
    orders = {order for layer in layers.values() for order in layer["orders"]}
    widths = {layer["columns"] % layer["block"] for layer in layers.values()}
    assert orders == {1, 2, 3}
    assert widths == {0, 8}


def test_needs_neither_torch_nor_qdc(artifact: Path) -> None:
    script = (
        f"import runpy, sys; from pathlib import Path; runpy.run_path({str(READER)!r})"
        f"['read'](Path({str(artifact)!r})); "
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('torch', 'qdc')))"
    )
    found = python("-c", script)
    assert (found.stdout, found.stderr) == ("[]\n", "")


def test_prints_a_table(artifact: Path) -> None:
    found = python(READER, artifact)
    assert found.returncode == 0
    first, *others = found.stdout.splitlines()
    assert first.startswith("model.transformer.blocks.0.q_proj ")
    assert "float32[256, 256]" in first
    assert len(others) == 6


@pytest.mark.parametrize("suffix", ["planes", "row_scale", "col_scale", "orders"])
def test_refuses_a_damaged_tensor(
    decoded: dict[str, Callable[..., dict[str, np.ndarray]]],
    suffix: str,
    artifact: Path,
    tmp_path: Path,
) -> None:
    broken = shutil.copytree(artifact, tmp_path / "broken")
    shard = broken / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    name = f"model.transformer.blocks.0.q_proj.{suffix}"
    tensors[name] = torch.cat([tensors[name], tensors[name]])
    save_file(tensors, shard)
    with pytest.raises(ValueError, match=f"{suffix} is damaged"):
        decoded["read"](broken)


def test_refuses_another_version(
    decoded: dict[str, Callable[..., dict[str, np.ndarray]]], artifact: Path, tmp_path: Path
) -> None:
    newer = shutil.copytree(artifact, tmp_path / "newer")
    config = json.loads((newer / "config.json").read_text())
    config["quantization_config"]["format_version"] = 3
    (newer / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="version 1 or 2"):
        decoded["read"](newer)


def test_refuses_codes_of_inputs(
    decoded: dict[str, Callable[..., dict[str, np.ndarray]]], artifact: Path, tmp_path: Path
) -> None:
    coded = shutil.copytree(artifact, tmp_path / "coded")
    config = json.loads((coded / "config.json").read_text())
    path, *_ = config["quantization_config"]["layers"]
    codes = {"rotation": 1, "input": {"bits": 8}}
    config["quantization_config"] |= {"format_version": 2, "activations": {path: codes}}
    (coded / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"no codes of inputs or outputs, as of {path}"):
        decoded["read"](coded)


def test_says_in_one_line_what_is_missing(tmp_path: Path) -> None:
    wide(tmp_path / "m")
    cases = {
        (): "usage: python examples/read_artifact.py OUT",
        (tmp_path / "m",): f"{tmp_path / 'm'} is no qdc artifact of format version 1 or 2",
        (tmp_path / "x",): f"No such file or directory: '{tmp_path / 'x' / 'config.json'}'",
    }
    for arguments, message in cases.items():
        found = python(READER, *arguments)
        assert (found.returncode, found.stdout) == (1, "")
        assert found.stderr.endswith(f"{message}\n")
        assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(("bits", "code"), [(8, "cubic"), (8, None), (16, "logarithmic")])
def test_refuses_codes_of_scales_that_the_format_does_not_have(
    bits: int, code: str | None, decoded: dict[str, Callable[..., np.ndarray]]
) -> None:
    kind = "u1" if bits == 8 else "f2"
    stored = {"row_scale": np.ones((3, 2), kind), "row_peak": np.ones((1, 2), "f2")}
    layer = {"scale_bits": bits, "scale_code": code}
    with pytest.raises(ValueError, match="scale_code is damaged"):
        decoded["scales"](layer, stored, "row")
    assert decoded["scales"]({"scale_bits": bits}, stored, "row").shape == (3, 2)
