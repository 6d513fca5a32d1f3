"""Several ranks go on from where all of them were; ranks are threads here."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qdc.artifact.journal import Journal
from qdc.artifact.rankfolder import RankFolder
from qdc.checkpoint.folder import Checkpoint
from qdc.compiling import job as jobs
from qdc.compiling.compiler import run_job
from qdc.compiling.instruments import Instrument
from qdc.distributed.world import World
from qdc.errors import InvalidJournal, OutputExists
from qdc.frontend.opening import open_model
from qdc.frontend.tracer import Program
from qdc.report.model import CompileReport
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import make_job
from tests.support.ranks import on_ranks

SAMPLES = "samples=5 length=10 batch=2"
PASSES = (
    f"quantize-vocab,stages(rotate,calibrate-cross{{{SAMPLES}}},sensitivity{{damp=0.1}},"
    "abmp-allocate,daq-lower{asymmetry=1}),pack"
)
RANKS = 2


class Ends(Exception):
    """A process ends."""


class End(Instrument):
    """End one rank in the middle of a step."""

    def __init__(self, applications: int) -> None:
        self.left = applications

    def before(self, place: int, unit: Unit) -> None:
        self.left -= 1
        if not self.left:
            raise Ends


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, n_layers=3)


@pytest.fixture(scope="module", autouse=True)
def _one_trace_at_a_time() -> Iterator[None]:
    """torch.fx patches classes while it traces, which threads share."""
    lock, trace = threading.Lock(), open_model

    def traced(*arguments: Any) -> tuple[Checkpoint, Program]:
        with lock:
            return trace(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "open_model", traced)
        yield


def compiled(
    model: Path, out: Path, *, ends: int = 0, ranks: int = RANKS, **options: Any
) -> CompileReport:
    """Compile on all ranks; rank 1 ends before so many applications of passes."""

    def work(world: World) -> CompileReport:
        watch = (End(ends),) if ends and world.rank == 1 else ()
        job = make_job(model, out, passes=PASSES, instruments=watch, **options)
        return run_job(job, None, world)

    return on_ranks(ranks, work)[0]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def interrupted(
    model: Path, _one_trace_at_a_time: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder where a compile to ``out`` has ended in the second of three regions."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Ends):
        compiled(model, folder / "out", ends=1 + 17 + 6)
    assert {p.name for p in folder.iterdir()} == {".out.partial", ".out.partial.rank-1"}
    return folder


def copy(interrupted: Path, folder: Path) -> Path:
    shutil.copytree(interrupted, folder, dirs_exist_ok=True)
    return folder / "out"


def test_all_go_on_to_the_bytes_of_an_uninterrupted_run(
    model: Path, interrupted: Path, tmp_path: Path
) -> None:
    """Also where a rank had not heard that its last step counts."""
    once = compiled(model, tmp_path / "once", resume=True)
    expected = files(tmp_path / "once")
    out = copy(interrupted, tmp_path)
    own = tmp_path / ".out.partial.rank-1"
    (own / "journal.json").rename(own / "journal.next.json")
    again = compiled(model, out, resume=True)
    assert files(out) == expected
    assert (again.resumed, again.processes) == (1, RANKS)
    assert (again.layers, again.layer_forwards) == (once.layers, once.layer_forwards)
    assert {path.name for path in tmp_path.iterdir()} == {"once", "out"}
    assert compiled(model, out, resume=True).artifact_sha256 == again.artifact_sha256


def test_a_part_that_waits_is_kept_as_its_step_may_count(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rank notes the first step; the other ends before it hears of it."""

    def lost(self: RankFolder, journal: Journal) -> None:
        raise Ends

    expected = tmp_path / "once"
    compiled(model, expected)
    with monkeypatch.context() as patch:
        patch.setattr(RankFolder, "save", lost)
        with pytest.raises(Ends):
            compiled(model, tmp_path / "out")
    assert (tmp_path / ".out.partial.rank-1" / "journal.next.json").is_file()
    assert compiled(model, tmp_path / "out", resume=True).resumed == 1
    assert files(tmp_path / "out") == files(expected)


def test_what_cannot_be_gone_on_from_is_refused(
    model: Path, interrupted: Path, tmp_path: Path
) -> None:
    out = copy(interrupted, tmp_path)
    with pytest.raises(OutputExists, match="2 of 4 steps are done"):
        compiled(model, out)
    with pytest.raises(InvalidJournal, match="rank 2 has no part"):
        compiled(model, out, ranks=3, resume=True)
    with pytest.raises(InvalidJournal, match="of other inputs or options") as caught:
        run_job(make_job(model, out, passes=PASSES, resume=True))
    assert "processes: 2 -> none" in caught.value.where
    (values,) = (tmp_path / ".out.partial.rank-1" / "kept").glob("*_stream_2_0.safetensors")
    values.write_bytes(values.read_bytes()[:-1] + b"?")
    with pytest.raises(InvalidJournal, match="missing or damaged") as caught:
        compiled(model, out, resume=True)
    assert list(caught.value.where) == [f"rank 1: {values.name}"]
    assert (tmp_path / ".out.partial").is_dir(), "nothing is lost by a refusal"
    run_job(make_job(model, out, passes="rtn", restart=True))
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_parts_without_a_first_process_are_swept(model: Path, tmp_path: Path) -> None:
    """As the last process may be killed after the artifact has taken its place."""
    own = tmp_path / ".out.partial.rank-7"
    (own / "kept").mkdir(parents=True)
    (own / "lock").touch()
    foreign = tmp_path / ".out.partial.rank-x"
    foreign.mkdir()
    run_job(make_job(model, tmp_path / "out", passes="rtn"))
    assert {path.name for path in tmp_path.iterdir()} == {"out", foreign.name}
