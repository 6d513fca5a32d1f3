"""Real processes under torchrun, with gloo: one artifact, one error, one exit code."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qdc.cli import run
from tests.support.checkpoints import write_checkpoint
from tests.support.commands import environment, python
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


@pytest.mark.slow
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


@pytest.mark.slow
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


WAITING = '''
import os
import time
from pathlib import Path
from typing import ClassVar

from qdc import Pass, Unit


class Wait(Pass):
    """One rank waits in Python, the others for it."""

    name: ClassVar[str] = "wait"

    def run(self, unit: Unit) -> None:
        """Write down who this is; then wait."""
        rank = os.environ["RANK"]
        path = Path(os.environ["QDC_TEST_PLACE"])
        (path / f".{rank}.new").write_text(str(os.getpid()))
        (path / f".{rank}.new").rename(path / f"rank-{rank}")
        if rank == "1":
            time.sleep(100)
'''


@pytest.mark.parametrize("lost", ["torchrun", pytest.param("rank 1", marks=pytest.mark.slow)])
def test_processes_that_lose_one_another_stop_with_a_word(
    lost: str, model: Path, tmp_path: Path
) -> None:
    """Whoever is killed, by a signal that nobody can handle: soon nothing runs any more."""
    plugin = tmp_path / "waiting.py"
    plugin.write_text(WAITING)
    place = tmp_path / "place"
    place.mkdir()
    with (tmp_path / "errors").open("wb") as errors:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
             "-m", "qdc", "compile", str(model), "-o", str(place / "out"), "--plugin", str(plugin),
             "--passes", "wait,rtn-lower,pack"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            env={**environment(), "QDC_TEST_PLACE": str(place)},
        )  # fmt: skip
    files = [place / f"rank-{rank}" for rank in range(2)]
    await_(lambda: all(file.exists() for file in files))
    ranks = [int(file.read_text()) for file in files]
    os.kill(launcher.pid if lost == "torchrun" else ranks[1], SIGKILL)
    launcher.wait(timeout=60)
    await_(lambda: not any(map(is_running, ranks)))
    said = (tmp_path / "errors").read_text()
    # Whichever process notices first: it looks for torchrun, or its connection is closed.
    words = ("torchrun has ended, and the", "another process of the compile has gone", "terminated")
    assert any(word in said for word in words)
    if lost == "torchrun":
        assert "Traceback" not in said
    assert not (place / ".out.partial").exists()
    assert not (place / "out").exists()


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
