"""Real processes under torchrun, with gloo: one artifact, one error, one exit code."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qdc.cli import run
from tests.support.checkpoints import write_checkpoint
from tests.support.commands import python
from tests.support.compiles import compile_tiny

PASSES = (
    "stages(calibrate-cross{samples=5 length=10 batch=1},sensitivity,abmp-allocate,"
    "daq-lower{asymmetry=1}),pack"
)
FAILING = '''
import os
from typing import ClassVar

from qdc import Pass, QdcError, Unit


class Fail(Pass):
    """Fail on one rank."""

    name: ClassVar[str] = "fail"

    def run(self, unit: Unit) -> None:
        """Fail."""
        if os.environ["RANK"] == "1":
            raise QdcError("a mistake that one rank finds", help="mend it")
'''


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    return python("-m", *launcher, "-m", "qdc", *arguments)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48)


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of this process, on one thread."""
    out = tmp_path_factory.mktemp("alone") / "out"
    compile_tiny(model, out, PASSES, samples=None, length=None)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tensors(folder: Path) -> dict[str, Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def test_two_processes_give_the_bytes_of_one(model: Path, alone: Path, tmp_path: Path) -> None:
    options = ("--passes", PASSES, "--no-report", "--deterministic-reduce")
    done = torchrun("compile", model, "-o", tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == files(alone)
    assert done.stdout.count("written ") == 1
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("processes"))
    assert line.split()[1] == "2,"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_processes_give_the_structure_and_scales_of_one(
    model: Path, alone: Path, tmp_path: Path
) -> None:
    done = torchrun("compile", model, "-o", tmp_path / "out", "--passes", PASSES, "--no-report")
    assert done.returncode == 0, done.stderr
    found, expected = tensors(tmp_path / "out"), tensors(alone)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-6)
    config = (alone / "config.json").read_bytes()
    assert (tmp_path / "out" / "config.json").read_bytes() == config


def test_the_error_of_one_rank_ends_all_and_is_shown_once(model: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "failing.py"
    plugin.write_text(FAILING)
    done = torchrun(
        "compile", model, "-o", tmp_path / "out",
        "--plugin", plugin, "--passes", "rtn-lower,fail,pack",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("error[QDC100] a mistake that one rank finds\n") == 1
    assert done.stderr.count("error[QDC") == 1
    assert "exitcode  : 1" in done.stderr
    assert done.stdout == ""
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"failing.py", "out-repro"}


@pytest.mark.parametrize(("rank", "shown"), [("0", 1), ("1", 0)])
def test_what_all_ranks_find_before_they_meet_the_first_shows(
    rank: str,
    shown: int,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    for arguments, text in (
        (["show", str(model)], "qdc show is the work of one process"),
        (["compile", str(model)], "missing option"),
        (["compile", str(model), "-o", "out"], "the rest of torchrun's environment is not"),
        (["compile", str(model), "-o", "out", "--device", "cuda:0"], "one device"),
    ):
        assert run(arguments) == 1
        assert capsys.readouterr().err.count(text) == shown


def test_a_number_of_processes_that_is_none_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert run(["compile", str(model), "-o", "out"]) == 1
    assert "WORLD_SIZE is 'many'" in capsys.readouterr().err
