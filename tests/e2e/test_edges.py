"""Odd but honest checkpoints, folders and disks: each has a defined result.

Elsewhere: NaN, infinity, missing, extra and misshapen tensors, damaged files and folders
(tests/cli/test_bad_files.py, tests/checkpoint/test_checkpoint.py, tests/frontend/test_coverage.py),
places that cannot be written (tests/artifact/test_writer.py).
"""

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import qdc
from qdc import disk
from qdc.errors import InvalidCheckpoint, QdcError
from tests.support.checkpoints import TOKENIZER, write_checkpoint
from tests.support.commands import python
from tests.support.compiles import compile_tiny

HEAD = "model.transformer.ff_out.weight"
NORM = "model.transformer.ln_f.weight"
FREE, CALIBRATED = "quantize-vocab,rtn-lower,pack", "stages(calibrate-mcs,rtn-lower),pack"
SMALL: dict[str, Any] = {"d_model": 32, "mlp_hidden_size": 48}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_dtype_compiles_and_what_is_kept_stays_in_it(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path / "m", dtype=dtype, **SMALL)
    compile_tiny(model, tmp_path / "out", CALIBRATED)
    before = load_file(model / "model.safetensors")
    after: dict[str, torch.Tensor] = {}
    for shard in sorted((tmp_path / "out").glob("*.safetensors")):
        after |= load_file(shard)
    for name in (NORM, HEAD):
        assert after[name].dtype == dtype
        assert torch.equal(after[name], before[name])
    logits = qdc.load(tmp_path / "out", backend="reference")(torch.zeros(1, 4, dtype=torch.int64))
    assert bool(logits.isfinite().all())


def test_shards_and_a_single_file_give_one_artifact(tmp_path: Path) -> None:
    found = []
    for shards in (1, 3):
        model = write_checkpoint(tmp_path / f"m{shards}", shards=shards, **SMALL)
        compile_tiny(model, tmp_path / f"out{shards}", CALIBRATED)
        found.append(content(tmp_path / f"out{shards}"))
    assert found[0] == found[1]


def test_missing_shards_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", shards=3, **SMALL)
    (model / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InvalidCheckpoint, match="shards that are missing") as caught:
        compile_tiny(model, tmp_path / "out", FREE)
    assert caught.value.where == ("model-00002-of-00003.safetensors",)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_head_that_is_absent_is_named(tmp_path: Path) -> None:
    """Of a model whose configuration does not say that its head is its embedding."""

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[HEAD]

    model = write_checkpoint(tmp_path / "m", edit=drop, **SMALL)
    with pytest.raises(InvalidCheckpoint, match="lacks 1 tensor ") as caught:
        compile_tiny(model, tmp_path / "out", FREE)
    assert caught.value.where == (HEAD,)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A model without a tokenizer."""
    model = write_checkpoint(tmp_path / "m", **SMALL)
    for name in TOKENIZER:
        (model / name).unlink()
    return model


def test_without_statistics_no_tokenizer_is_needed(bare: Path, tmp_path: Path) -> None:
    compile_tiny(bare, tmp_path / "out", FREE)
    assert not set(TOKENIZER) & set(content(tmp_path / "out"))
    assert qdc.load(tmp_path / "out", backend="reference")(
        torch.zeros(1, 4, dtype=torch.int64)
    ).shape == (1, 4, 2048)


def test_a_missing_tokenizer_is_noticed_before_weights_are_read(bare: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    with pytest.raises(InvalidCheckpoint, match=r"no tokenizer\.json") as caught:
        compile_tiny(
            bare, tmp_path / "out", CALIBRATED, progress=lambda what, *_: seen.append(what)
        )
    assert "save_pretrained" in caught.value.help
    assert seen == []
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A model folder that cannot be written (by anyone but root)."""
    model = write_checkpoint(tmp_path / "m", shards=2, **SMALL)
    for path in (*model.iterdir(), model):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield model
    model.chmod(0o755)


def test_a_model_folder_that_is_read_only(read_only: Path, tmp_path: Path) -> None:
    """Nothing is written into it, so root sees the same as everybody."""

    def state() -> dict[str, tuple[bytes, int]]:
        return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in read_only.iterdir()}

    before, touched = state(), read_only.stat().st_mtime_ns
    compile_tiny(read_only, tmp_path / "out", CALIBRATED, write_report=True)
    assert state() == before
    assert read_only.stat().st_mtime_ns == touched
    for path in (tmp_path / "out").iterdir():
        assert os.access(path, os.W_OK)


@pytest.mark.parametrize("full", [1, 2, 3])
def test_a_disk_that_fills_up_is_named_and_only_finished_regions_are_left(
    full: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first region, at the second, and at what lies outside of them."""
    model = write_checkpoint(tmp_path / "m", **SMALL)
    save, count = save_file, 0

    def fill(tensors: Any, path: Path, **options: Any) -> None:
        nonlocal count
        count += path.name.startswith("model-")
        if count == full:
            path.write_bytes(b"half of a shard")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path, **options)

    monkeypatch.setattr(disk, "save_file", fill)
    with pytest.raises(QdcError, match="no space left on device") as caught:
        compile_tiny(model, tmp_path / "out", "rtn-lower,pack", write_report=True)
    assert f"model-0000{full}-of-00003.safetensors" in caught.value.what
    left = ["m"] if full == 1 else [".out.partial", "m"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from qdc.cli import run
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no resource limits")
@pytest.mark.parametrize(
    "limit",
    [pytest.param(1000, marks=pytest.mark.slow, id="at once"), pytest.param(60_000, id="later")],
)
def test_a_system_that_takes_no_more_bytes(limit: int, tmp_path: Path) -> None:
    """Through the real command: the kernel refuses what goes beyond the limit."""
    model = write_checkpoint(tmp_path / "m", **SMALL)
    arguments = ("compile", model, "-o", tmp_path / "out", "--passes", "rtn-lower,pack")
    found = python("-c", LIMITED, limit, *arguments)
    assert found.returncode == 1, found.stderr
    assert found.stderr.startswith("error[QDC100] cannot write to ")
    assert "Traceback" not in found.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"m", ".out.partial"}
