"""Interrupted compiles: what is resumed, what is redone, what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import qdc
from qdc.artifact.journal import JOURNAL, Journal, read_journal
from qdc.disk import digest_of
from qdc.errors import InvalidCalibration, InvalidJournal, OutputExists, QdcError
from qdc.passes.pack import Pack
from qdc.passes.quantize_vocab import QuantizeVocab
from qdc.passes.rtn_lower import RtnLower
from qdc.report.files import ReportWriter
from tests.support.checkpoints import write_checkpoint
from tests.support.threads import one_thread

__all__ = ["one_thread"]

PASSES = (
    "stages(calibrate-mcs,rtn-lower{bits=4}),quantize-vocab,"
    "stages(calibrate-cross,sensitivity,gptq-lower{group=16}),"
    "polish{iterations=2 check-every=1},pack"
)
"""Three segments; streams that go back, and drift between two of them."""
STEPS = [
    "blocks.0", "blocks.1", "blocks.2", "quantize-vocab", "blocks.0", "blocks.1", "blocks.2",
]  # fmt: skip
OPTIONS: dict[str, Any] = {"samples": 4, "length": 16, "write_report": False}
Contents = dict[str, bytes]


class Stopped(Exception):
    """Somebody pulled the plug."""


def contents(out: Path) -> Contents:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def run(model: Path, out: Path, **options: Any) -> qdc.CompileReport:
    return qdc.compile(model, **{"passes": PASSES, "out": out, **OPTIONS, **options})


def stop_after(steps: int) -> Callable[[str, int, int], None]:
    """Progress that stops a compile in the middle of the step behind so many."""
    # Four stages in a region: two passes on each, then three on each and two on the whole.
    applications = [8, 8, 8, 1, 14, 14, 14]

    def progress(what: str, done: int, total: int) -> None:
        if what == "run the passes" and done == sum(applications[:steps]) + 1:
            raise Stopped

    return progress


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, n_layers=3, dtype=torch.float32)


@pytest.fixture(scope="module")
def whole(model: Path) -> tuple[Contents, qdc.CompileReport]:
    """An uninterrupted compile."""
    report = run(model, model.with_name("whole"))
    return contents(model.with_name("whole")), report


@pytest.fixture(scope="module")
def stopped(model: Path) -> dict[int, Path]:
    """Folders that hold a compile that was stopped after so many steps."""
    found = {}
    for steps in (2, 4, 6):
        folder = model.with_name(f"stopped-{steps}")
        with pytest.raises(Stopped) as caught:
            run(model, folder / "out", progress=stop_after(steps))
        assert f"{steps} of 7 steps are done" in "".join(caught.value.__notes__)
        found[steps] = folder
    return found


def copy(stopped: dict[int, Path], steps: int, folder: Path) -> Path:
    """Another copy of a stopped compile; returns its OUT."""
    shutil.copytree(stopped[steps] / ".out.partial", folder / ".out.partial")
    return folder / "out"


def journal_of(out: Path) -> Journal:
    found = read_journal(out.with_name(".out.partial"))
    assert found is not None
    return found


@pytest.mark.parametrize("steps", [2, 4, 6])
def test_a_resumed_compile_gives_the_same_bytes_and_the_same_report(
    steps: int,
    model: Path,
    stopped: dict[int, Path],
    whole: tuple[Contents, qdc.CompileReport],
    tmp_path: Path,
) -> None:
    out = copy(stopped, steps, tmp_path)
    assert [entry.step for entry in journal_of(out).entries] == STEPS[:steps]
    seen: list[int] = []
    report = run(
        model, out, resume=True,
        progress=lambda what, done, total: seen.append(done) if "passes" in what else None,
    )  # fmt: skip
    expected, once = whole
    assert contents(out) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert report.resumed == 1
    assert report.calibration_text == once.calibration_text != ()
    assert once.resumed == 0
    for field in ("layers", "remarks", "coverage", "layer_forwards", "files", "artifact_sha256"):
        assert getattr(report, field) == getattr(once, field), field
    assert [row.units for row in report.passes] == [row.units for row in once.passes]
    assert seen[-1] == 67
    assert seen[0] > 8


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What three passes run on from here on."""
    found: list[str] = []
    for kind in (RtnLower, Pack, QuantizeVocab):

        def run(self: Any, unit: qdc.Unit, kind: Any = kind, before: Any = kind.run) -> None:
            found.append(f"{kind.name} {unit.name}")
            before(self, unit)

        monkeypatch.setattr(kind, "run", run)
    return found


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


REDONE = {
    "second shard": (5, "written", ["pack blocks.1"]),
    "first shard": (4, "written", ["pack blocks.0"]),
    "working tensors": (1, "tensors", ["rtn-lower blocks.1"] * 4),
    "vocabulary": (3, "tensors", ["quantize-vocab model"]),
}


@pytest.mark.parametrize(
    ("case", "how"),
    [
        *((case, "damaged") for case in REDONE),
        ("second shard", "missing"),
        ("second shard", "link"),
        ("second shard", "folder"),
        ("working tensors", "folder"),
    ],
)
def test_a_damaged_file_costs_its_own_step_alone(
    case: str,
    how: str,
    model: Path,
    stopped: dict[int, Path],
    whole: tuple[Contents, qdc.CompileReport],
    ran: list[str],
    tmp_path: Path,
) -> None:
    out = copy(stopped, 6, tmp_path)
    step, kind, redone = REDONE[case]
    (file,) = getattr(journal_of(out).entries[step], kind)
    path = out.with_name(".out.partial") / ("artifact" if kind == "written" else "kept") / file.name
    if how == "damaged":
        damage(path)
    else:
        path.unlink()
    if how == "link":
        path.symlink_to(model / "config.json")
    if how == "folder":
        path.mkdir()
        (path / "somebody's").write_text("")
    run(model, out, resume=True)
    assert contents(out) == whole[0]
    assert ran == [*redone, "pack blocks.2"]


@pytest.mark.parametrize("steps", [2, 6])
def test_damaged_states_are_found_again_on_the_old_way(
    steps: int,
    model: Path,
    stopped: dict[int, Path],
    whole: tuple[Contents, qdc.CompileReport],
    ran: list[str],
    tmp_path: Path,
) -> None:
    out = copy(stopped, steps, tmp_path)
    streams = journal_of(out).entries[-1].streams
    assert len(streams) == {2: 1, 6: 4}[steps]
    for stream in streams:
        damage(out.with_name(".out.partial") / "kept" / stream.batches[0].name)
    report = run(model, out, resume=True)
    assert contents(out) == whole[0]
    assert report.layer_forwards == whole[1].layer_forwards
    assert ran[0] == {2: "rtn-lower blocks.2", 6: "pack blocks.2"}[steps]


def test_everything_is_found_again_when_only_graphs_are_left(
    model: Path,
    stopped: dict[int, Path],
    whole: tuple[Contents, qdc.CompileReport],
    tmp_path: Path,
) -> None:
    out = copy(stopped, 6, tmp_path)
    for path in out.with_name(".out.partial").rglob("*.safetensors"):
        path.unlink()
    run(model, out, resume=True)
    assert contents(out) == whole[0]


def test_without_a_word_nothing_is_lost(
    model: Path, stopped: dict[int, Path], tmp_path: Path
) -> None:
    out = copy(stopped, 4, tmp_path)
    with pytest.raises(
        OutputExists, match="4 of 7 steps are done, the last is quantize-v"
    ) as caught:
        run(model, out)
    assert "--resume" in caught.value.help
    assert "--restart" in caught.value.help
    assert len(journal_of(out).entries) == 4


def test_a_restart_discards_it(
    model: Path, stopped: dict[int, Path], tmp_path: Path, ran: list[str]
) -> None:
    out = copy(stopped, 4, tmp_path)
    report = run(model, out, passes="rtn-lower,pack", samples=None, length=None, restart=True)
    assert report.resumed == 0
    assert len([name for name in ran if name.startswith("rtn-lower")]) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_resuming_nothing_begins(model: Path, tmp_path: Path) -> None:
    options = {"passes": "rtn-lower,pack", "samples": None, "length": None}
    report = run(model, tmp_path / "out", resume=True, **options)
    assert report.resumed == 0


def other_text(path: Path) -> Path:
    path.write_text("another text, and long enough to draw from. " * 40, encoding="utf-8")
    return path


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 3}, "pipeline: stages(calibrate-mcs{samples=4 length=16}"),
    "passes": ({"passes": "calibrate-mcs,rtn-lower,pack"}, "-> calibrate-mcs{samples=4 length=16}"),
    "no text": ({"passes": "rtn-lower,pack", "samples": None, "length": None}, "-> none"),
    "states": ({"states": "f32"}, "states: bf16 -> f32"),
    "text": ({"calibration": True}, "calibration: embedded sha256:"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changed_options_are_refused_by_name(
    case: str, model: Path, stopped: dict[int, Path], tmp_path: Path
) -> None:
    out = copy(stopped, 2, tmp_path)
    options, named = CHANGES[case]
    if "calibration" in options:
        options = {"calibration": other_text(tmp_path / "text.txt")}
    before = contents(out.with_name(".out.partial") / "kept")
    with pytest.raises(InvalidJournal, match="was of other inputs or options") as caught:
        run(model, out, resume=True, **options)
    assert len(caught.value.where) == (3 if case == "no text" else 1)
    assert named in caught.value.where[-1]
    assert not hasattr(caught.value, "__notes__")
    assert "--restart" in caught.value.help
    assert contents(out.with_name(".out.partial") / "kept") == before


def test_changed_threads_processors_and_files_are_refused_by_name(
    model: Path, stopped: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy(stopped, 2, tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "VSX")
    other = tmp_path / "model"
    write_checkpoint(other, d_model=32, mlp_hidden_size=48, n_layers=3, dtype=torch.float32, seed=1)
    (other / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InvalidJournal, match="4 changed") as caught:
        run(other, out, resume=True)
    vectors, threads, checkpoint, tokenizer = caught.value.where
    assert vectors.startswith("vector instructions: ")
    assert vectors.endswith(" -> VSX")
    assert threads == "threads: 1 -> 7"
    assert checkpoint.startswith("checkpoint: sha256:")
    assert tokenizer.startswith("tokenizer_config.json: sha256:")


def test_the_report_of_a_compile_that_ended_after_its_rename_is_not_lost(
    model: Path,
    whole: tuple[Contents, qdc.CompileReport],
    stopped: dict[int, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = copy(stopped, 6, tmp_path)

    def killed(self: ReportWriter) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ReportWriter, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            run(model, out, resume=True, write_report=True)
    assert contents(out) == whole[0], "the artifact is there"
    with pytest.raises(OutputExists):
        run(model, out)
    assert not (tmp_path / ".out.partial").exists()
    report = run(model, out, resume=True, write_report=True)
    assert report.resumed == 1, "by the process that was ended"
    assert contents(out) == whole[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-report"]


@pytest.mark.parametrize("write", [1, 5, 14, 26])
def test_a_disk_that_fills_costs_nothing_that_was_done(
    write: int,
    model: Path,
    whole: tuple[Contents, qdc.CompileReport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The n-th file does not fit; later there is room again."""
    count = 0

    def sync(handle: int) -> None:
        nonlocal count
        count += 1
        if count >= write:
            raise OSError(28, os.strerror(28))

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        with pytest.raises(QdcError, match="no space left on device"):
            run(model, out)
    assert [path.name for path in tmp_path.iterdir()] == ([".out.partial"] if write > 5 else [])
    run(model, out, resume=True)
    assert contents(out) == whole[0]


def test_spilled_states_give_the_same_bytes(
    model: Path, whole: tuple[Contents, qdc.CompileReport], tmp_path: Path
) -> None:
    run(model, tmp_path / "out", host_memory=3000)
    assert contents(tmp_path / "out") == whole[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def edit_journal(**fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / JOURNAL).read_text())
        (folder / JOURNAL).write_text(json.dumps({**data, **fields}))

    return edit


def rewrite(data: bytes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / JOURNAL).write_bytes(data)

    return edit


def edit_entry(**fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / JOURNAL).read_text())
        data["entries"][-1].update(fields)
        (folder / JOURNAL).write_text(json.dumps(data))

    return edit


def damage_graph(folder: Path) -> None:
    damage(next(folder.glob("kept/*_graph.qdc")))


def link_journal(folder: Path) -> None:
    (folder / JOURNAL).rename(folder / "elsewhere")
    (folder / JOURNAL).symlink_to("elsewhere")


SHA = "0" * 64
HOSTILE: dict[str, Callable[[Path], None]] = {
    "empty": rewrite(b""),
    "no JSON": rewrite(b"{"),
    "no text": rewrite(b"\xff\xfe"),
    "deep": rewrite(b"[" * 100_000),
    "a list": rewrite(b"[]"),
    "another version": edit_journal(version=2),
    "unknown field": edit_journal(more=1),
    "negative": edit_journal(linear_calls=-1),
    "not finite": edit_journal(seconds=float("inf")),
    "no entries": edit_journal(entries=[]),
    "too many entries": edit_journal(total=1),
    "another total": edit_journal(total=9),
    "no passes": edit_journal(passes=[]),
    "another step": edit_entry(step="blocks.7"),
    "a path": edit_entry(tensors=[{"name": "../../etc", "sha256": SHA}]),
    "no graph": edit_entry(graph=None),
    "damaged graph": damage_graph,
    "linked": link_journal,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_damaged_or_hostile_journal_is_refused(
    case: str, model: Path, stopped: dict[int, Path], tmp_path: Path
) -> None:
    out = copy(stopped, 2, tmp_path)
    HOSTILE[case](out.with_name(".out.partial"))
    with pytest.raises(InvalidJournal) as caught:
        run(model, out, resume=True)
    assert "--restart" in caught.value.help


STATES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "tokens out of range": lambda found: {**found, "tokens": found["tokens"] + 5000},
    "tokens that are no numbers": lambda found: {**found, "tokens": found["tokens"].float()},
    "no tokens": lambda found: {name: found[name] for name in found if name != "tokens"},
    "a value of no node": lambda found: {**found, "held.nothing": torch.zeros(1)},
    "values of another shape": lambda found: {
        name: value[:1] if "." in name else value for name, value in found.items()
    },
}


@pytest.mark.parametrize("field", [{"stops": [1 << 60]}, {"stops": [-1]}, {"left": 1 << 60}])
def test_a_way_that_leaves_the_model_is_refused(
    field: dict[str, Any], model: Path, stopped: dict[int, Path], tmp_path: Path
) -> None:
    out = copy(stopped, 2, tmp_path)
    (stream,) = journal_of(out).entries[-1].streams
    edit_entry(streams=[{**stream.model_dump(), **field}])(out.with_name(".out.partial"))
    with pytest.raises(InvalidJournal, match="has left the model"):
        run(model, out, resume=True)


@pytest.mark.parametrize("case", STATES)
def test_hostile_states_are_refused(
    case: str, model: Path, stopped: dict[int, Path], tmp_path: Path
) -> None:
    """The digest is right, the values are not those of the graph."""
    out = copy(stopped, 2, tmp_path)
    (stream,) = journal_of(out).entries[-1].streams
    path = out.with_name(".out.partial") / "kept" / stream.batches[0].name
    save_file(STATES[case](load_file(path)), path)
    batch = {"name": path.name, "sha256": digest_of(path)}
    edit_entry(streams=[{**stream.model_dump(), "batches": [batch]}])(path.parents[1])
    with pytest.raises(InvalidJournal):
        run(model, out, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_refused_text_leaves_nothing_to_go_on_from(
    resume: bool, model: Path, tmp_path: Path
) -> None:
    """It was to be drawn after a finished step; a better text is another compile."""
    text = tmp_path / "text.txt"
    text.write_text("short", encoding="utf-8")
    passes = "quantize-vocab,stages(calibrate-mcs,rtn-lower),pack"
    out = tmp_path / "out"
    with pytest.raises(InvalidCalibration, match="found 1 documents") as caught:
        run(model, out, passes=passes, calibration=text, pack="within")
    assert "pack=documents" in caught.value.help
    assert not getattr(caught.value, "__notes__", ())
    assert list(tmp_path.iterdir()) == [text]
    text.write_text("some words " * 50, encoding="utf-8")
    assert run(model, out, passes=passes, calibration=text, resume=resume).resumed == 0


def test_text_that_was_drawn_from_is_gone_on_with(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later refusal of it loses nothing of what was done with it."""
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text("some words " * 50, encoding="utf-8")

    def refuse(self: QuantizeVocab, unit: Any) -> None:
        raise InvalidCalibration("not so")

    with monkeypatch.context() as patch:
        patch.setattr(QuantizeVocab, "run", refuse)
        with pytest.raises(InvalidCalibration) as caught:
            run(model, out, calibration=text)
    assert "3 of 7 steps are done" in caught.value.__notes__[0]
    assert run(model, out, calibration=text, resume=True).resumed == 1
