"""Bad files: one message that names the culprit, exit code 1."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from torch import Tensor

from tests.cli.conftest import Command, Ended
from tests.support.artifacts import unsealed
from tests.support.checkpoints import write_checkpoint

RTN = ("--passes", "rtn-lower,pack")
PREFIX = "model.transformer.blocks"


def set_value(layers: tuple[str, ...], value: float) -> Callable[[dict[str, Tensor]], None]:
    def edit(tensors: dict[str, Tensor]) -> None:
        for layer in layers:
            tensors[f"{PREFIX}.{layer}.weight"][3, 5] = value

    return edit


def test_nan_and_infinity_name_all_layers(tmp_path: Path, refused: Command) -> None:
    edit = set_value(("0.k_proj", "1.ff_out"), float("nan"))
    model = write_checkpoint(tmp_path / "m", edit=edit)
    message = refused("compile", model, "-o", tmp_path / "out", *RTN)
    assert "2 tensors hold NaN or infinity" in message
    assert f"{PREFIX}.0.k_proj.weight, {PREFIX}.1.ff_out.weight" in message
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def remove(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{PREFIX}.0.k_proj.weight"], tensors[f"{PREFIX}.1.up_proj.weight"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors[f"{PREFIX}.0.extra.weight"] = tensors[f"{PREFIX}.0.k_proj.weight"].clone()


def reshape(tensors: dict[str, Tensor]) -> None:
    name = f"{PREFIX}.0.up_proj.weight"
    tensors[name] = tensors[name][:-1].clone()


TENSORS = {
    "infinity": (set_value(("0.v_proj",), float("inf")), ("0.v_proj.weight", "infinity")),
    "missing": (remove, ("0.k_proj.weight", "1.up_proj.weight", "lacks 2")),
    "unmapped": (add, ("0.extra.weight", "unmapped")),
    "shape": (reshape, ("0.up_proj.weight", "[319,160]")),
    "fp16 overflow": (set_value(("0.v_proj", "1.q_proj"), 1e30), ("%blocks.0.v_proj", "65504")),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_are_refused(case: str, tmp_path: Path, refused: Command) -> None:
    edit, named = TENSORS[case]
    model = write_checkpoint(tmp_path / "m", edit=edit)
    message = refused("compile", model, "-o", tmp_path / "out", *RTN)
    assert [part for part in named if part not in message] == []
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def rewrite(name: str, data: bytes | None) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        if data is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(data)

    return edit


def cut(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-50])

    return edit


FILES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no tokenizer": (rewrite("tokenizer.json", None), ("no tokenizer.json", "save_pretrained")),
    "damaged tokenizer": (cut("tokenizer.json"), ("tokenizer.json is no tokenizer",)),
    "no weights": (rewrite("model.safetensors", None), ("neither model.safetensors nor",)),
    "truncated weights": (cut("model.safetensors"), ("cut short", "model.safetensors")),
    "no configuration": (rewrite("config.json", None), ("config.json",)),
    "damaged configuration": (rewrite("config.json", b"{"), ("config.json is no JSON",)),
    "unknown family": (rewrite("config.json", b'{"architectures": ["Gpt9"]}'), ("Gpt9",)),
}


@pytest.mark.parametrize("case", FILES)
def test_model_folder_is_refused(case: str, model: Path, tmp_path: Path, refused: Command) -> None:
    edit, named = FILES[case]
    broken = shutil.copytree(model, tmp_path / "m")
    edit(broken)
    message = refused("compile", broken, "-o", tmp_path / "out", "--passes", "rtn")
    assert [part for part in named if part not in message] == []
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


TEXTS = {
    "bad line": (b'{"text": "a"}\n{"text": \n', "c.jsonl line 2"),
    "no object": (b'{"text": "a"}\n[1]\n', "found a list"),
    "no field": (b'{"body": "a"}\n', "the field 'text' is missing"),
    "no UTF-8": (b'{"text": "\xff"}\n', "byte 10 is not UTF-8"),
    "empty": (b"\n", "holds no text"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_calibration_text_is_refused(
    case: str, model: Path, tmp_path: Path, refused: Command
) -> None:
    data, named = TEXTS[case]
    (tmp_path / "c.jsonl").write_bytes(data)
    message = refused(
        "compile", model, "-o", tmp_path / "out", "--calibration", tmp_path / "c.jsonl"
    )
    assert named in message
    assert "help" in message


def test_existing_output_needs_force(artifact: Path, model: Path, refused: Command) -> None:
    message = refused("compile", model, "-o", artifact, *RTN)
    assert "is there already" in message
    assert "--force" in message


def test_force_spares_what_is_no_artifact(model: Path, tmp_path: Path, refused: Command) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "no qdc artifact" in refused("compile", model, "-o", tmp_path, *RTN, "--force")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_failed_compile_leaves_the_old_artifact(
    artifact: Path, tmp_path: Path, refused: Command
) -> None:
    model = write_checkpoint(tmp_path / "m", edit=set_value(("0.k_proj",), float("nan")))
    out = shutil.copytree(artifact, tmp_path / "out")
    refused("compile", model, "-o", out, "--force", *RTN)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in artifact.iterdir()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]


def test_unwritable_places_are_named(model: Path, tmp_path: Path, refused: Command) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused("compile", model, "-o", tmp_path / "file" / "x", *RTN)
    message = refused(
        "compile", model, "-o", tmp_path / "out", *RTN,
        "--dump-after", "all", "--dump-dir", tmp_path / "file" / "d",
    )  # fmt: skip
    assert str(tmp_path / "file") in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_artifact_is_not_compiled_again(
    artifact: Path, tmp_path: Path, refused: Command
) -> None:
    assert "is a qdc artifact" in refused("compile", artifact, "-o", tmp_path / "out", *RTN)


def test_truncated_dump_is_refused(artifact: Path, tmp_path: Path, refused: Command) -> None:
    dump = tmp_path / "cut.qdc"
    dump.write_bytes((artifact / "ir.qdc").read_bytes()[:-20])
    assert "cut.qdc" in refused("show", dump)
    dump.write_bytes(b"")
    assert "cut.qdc" in refused("show", dump)


def test_newer_dump_is_refused(artifact: Path, tmp_path: Path, refused: Command) -> None:
    data = msgpack.unpackb((artifact / "ir.qdc").read_bytes())
    (tmp_path / "new.qdc").write_bytes(msgpack.packb({**data, "version": 99}))
    message = refused("show", tmp_path / "new.qdc")
    assert "version 99" in message
    assert "update qdc" in message


def test_show_says_what_is_missing(artifact: Path, tmp_path: Path, refused: Command) -> None:
    assert "neither config.json nor ir.qdc" in refused("show", tmp_path)
    broken = shutil.copytree(artifact, tmp_path / "a")
    (broken / "ir.qdc").unlink()
    assert "has lost its ir.qdc" in refused("show", broken)
    assert "no qdc IR dump" in refused("show", artifact / "config.json")


def test_show_tells_of_weights_that_are_lost(
    artifact: Path, tmp_path: Path, command: Ended, caplog: pytest.LogCaptureFixture
) -> None:
    broken = shutil.copytree(artifact, tmp_path / "a")
    cut("model-00001-of-00003.safetensors")(broken)
    found = command("show", broken)
    assert (found.returncode, "@daq" in found.stdout) == (0, True)
    assert "only the graph is whole" in caplog.text
    assert "model-00001-of-00003.safetensors" in caplog.text


def change(**fields: object) -> Callable[[Path], None]:
    """Replace fields of the quantization configuration."""

    def edit(folder: Path) -> None:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        config["quantization_config"].update(fields)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


ARTIFACTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "truncated shard": (cut("model-00001-of-00003.safetensors"), ("cut short", "model-00001")),
    "missing shard": (
        rewrite("model-00002-of-00003.safetensors", None), ("model-00002-of-00003.safetensors",),
    ),
    "missing index": (rewrite("model.safetensors.index.json", None), ("neither",)),
    "newer format": (change(format_version=3), ("format version 3", "update qdc")),
    "other method": (change(quant_method="gptq"), ("quant_method",)),
    "unknown codec": (
        change(layers={f"{PREFIX}.0.q_proj": {"codec": "multi-binray"}}),
        ("'multi-binray'", "multi-binary", "--plugin"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ARTIFACTS)
def test_damaged_artifact_is_refused(
    case: str, artifact: Path, tmp_path: Path, refused: Command
) -> None:
    edit, named = ARTIFACTS[case]
    broken = unsealed(artifact, tmp_path / "a")
    edit(broken)
    message = refused("run", broken, "a <mask>")
    assert [part for part in named if part not in message] == []
