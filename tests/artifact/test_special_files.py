"""What stands in a file's place may be no file: a pipe, a device, a loop, or without an end."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import qdc
from qdc.artifact.writer import check_target
from qdc.disk import LARGEST_JSON, read_regular
from qdc.errors import OutputExists, QdcError
from qdc.ir.dump import read
from qdc.pipeline.registry import standard_registry
from tests.support.artifacts import unsealed

SPARSE = 1 << 40
FILES = ("config.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, SPARSE)


PLACED: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: path.symlink_to("nowhere"),
    "a terabyte": sparse,
}


@pytest.mark.parametrize("placed", PLACED)
@pytest.mark.parametrize("name", FILES)
def test_an_artifact_is_refused(name: str, placed: str, artifact: Path, tmp_path: Path) -> None:
    broken = unsealed(artifact, tmp_path / "a")
    (broken / name).unlink()
    PLACED[placed](broken / name)
    with pytest.raises(QdcError):
        qdc.load(broken)


@pytest.mark.parametrize("placed", PLACED)
def test_a_dump_is_refused(placed: str, tmp_path: Path) -> None:
    path = tmp_path / "ir.qdc"
    PLACED[placed](path)
    with pytest.raises(QdcError, match="cannot read the dump"):
        read(path, standard_registry().annotations())


@pytest.mark.parametrize("placed", PLACED)
def test_a_folder_with_it_is_no_artifact_to_be_replaced(placed: str, tmp_path: Path) -> None:
    PLACED[placed](tmp_path / "config.json")
    with pytest.raises(OutputExists, match="is no qdc artifact"):
        check_target(tmp_path, force=True)


def test_a_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(OSError, match="larger than"):
        read_regular(path, 4)
    os.truncate(path, LARGEST_JSON + 1)
    with pytest.raises(OSError, match="larger than 32 MiB"):
        read_regular(path, LARGEST_JSON)


@pytest.mark.parametrize("name", ["d_model", "quantization_config"])
def test_a_name_with_two_values_is_refused(name: str, artifact: Path, tmp_path: Path) -> None:
    """One reader takes the first, another the last."""
    copy = unsealed(artifact, tmp_path / "a")
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(f'{{"{name}": 1, {text[1:]}')
    with pytest.raises(QdcError, match=f"config.json gives '{name}' two values"):
        qdc.load(copy)


def test_a_value_that_stands_twice_is_no_harm(artifact: Path, tmp_path: Path) -> None:
    copy = unsealed(artifact, tmp_path / "a")
    text = (copy / "config.json").read_text()
    width = json.loads(text)["d_model"]
    (copy / "config.json").write_text(f'{{"d_model": {width}, {text[1:]}')
    assert qdc.load(copy)
