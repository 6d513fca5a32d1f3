"""A commit that ends anywhere: the old artifact or the new one is there, and the next one mends."""

import ctypes
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.common.calls import Ended, Moment, run_until, without_exchange
from qdc import stopping
from qdc.artifact import exchange as system
from qdc.artifact.commit import (
    DATA,
    PAGE,
    REPLACED,
    artifact_digest,
    discard,
    place_report,
    put_in_place,
    report_folder,
    restore,
)
from qdc.artifact.exchange import exchange
from qdc.artifact.partial import Partial, partial_folder, repair
from qdc.artifact.writer import ArtifactWriter
from qdc.disk import write_bytes
from qdc.stopping import undisturbed

CONFIG = {"quantization_config": {"quant_method": "qdc"}}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def make(folder: Path, name: str) -> Path:
    """An artifact that holds one file of its own."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / name).write_text(name)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def replace(out: Path) -> int:
    """What a compile does at its end, with a report."""
    with Partial(out) as partial:
        writer = ArtifactWriter(out, force=True, folder=partial.artifact)
        writer.json("config.json", CONFIG)
        writer.file("new", b"new")
        partial.report.mkdir()
        for name in (PAGE, DATA):
            write_bytes(partial.report / name, b"new")
        partial.note_commit()
        with undisturbed():
            writer.commit()
            place_report(partial.report, out)
    return 0


def export(out: Path) -> int:
    """What an export does at its end: no journal, no note, no report."""
    with Partial(out) as partial:
        writer = ArtifactWriter(out, force=True, folder=partial.artifact)
        writer.json("config.json", CONFIG)
        writer.file("new", b"new")
        writer.commit()
    return 0


@pytest.fixture
def place(tmp_path: Path) -> Callable[[], Path]:
    """Lay out a folder with an old artifact and its report."""

    def laid_out() -> Path:
        folder = tmp_path / "place"
        shutil.rmtree(folder, ignore_errors=True)
        out = make(folder / "out", "old")
        report_folder(out).mkdir()
        for name in (PAGE, DATA):
            (report_folder(out) / name).write_text("old")
        return out

    return laid_out


@pytest.mark.parametrize(
    ("work", "signals"),
    [(replace, 2), pytest.param(replace, 3, marks=pytest.mark.slow), (export, 1)],
)
@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
def test_no_end_at_any_call_loses_anything(
    work: Callable[[Path], int],
    signals: int,
    exchanges: bool,
    place: Callable[[], Path],
    tmp_path: Path,
) -> None:
    """Of three signals, some at each call: an export is a part of the other work."""

    def kinds(call: int) -> tuple[int, ...]:
        handled = SIGNALS[1:][(call // 2 + exchanges) % 2]
        return {1: SIGNALS[call % 3 :][:1], 2: (signal.SIGKILL, handled), 3: SIGNALS}[signals]

    def worked() -> int:
        if not exchanges:
            without_exchange()
        return work(out)

    def run(moment: Moment) -> Ended:
        return run_until(moment, worked, tmp_path / "log")

    out = place()
    total = run(Moment(0)).calls
    assert total > 20
    for call in range(1, total + 1):
        for kind in kinds(call):
            # SIGKILL after a call is SIGKILL before the next one.
            after = kind != signal.SIGKILL and (call + kind) % 2 == 0
            moment = Moment(call, kind, after)
            out = place()
            ended = run(moment)
            there = names(out) if out.is_dir() else None
            whole = [["config.json", "old"], ["config.json", "new"]]
            if kind == signal.SIGKILL:
                assert ended.code == -signal.SIGKILL, moment
                if there is None and not exchanges:
                    there = names(partial_folder(out) / f"artifact.{REPLACED}")
            else:
                done = ended.code == 0 and there == whole[1]
                assert done or ended.code == 128 + kind, (moment, ended)
                assert "Traceback" not in ended.errors, moment
                assert names(out.parent) == ["out", "out-report"], moment
            assert there in whole, moment
            repair(out)
            assert names(out) in whole, moment
            assert names(out.parent) == ["out", "out-report"], moment
            if work is replace:
                new = (out / "new").exists()
                found = [(report_folder(out) / name).read_text() for name in (PAGE, DATA)]
                assert found == ["new" if new else "old"] * 2, moment


def test_two_folders_change_places(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a", "first"), make(tmp_path / "b", "second")
    if not exchange(first, second):
        pytest.skip("this file system cannot do that")
    assert names(first) == ["config.json", "second"]
    assert names(second) == ["config.json", "first"]
    with pytest.raises(FileNotFoundError):
        exchange(first, tmp_path / "none")


@pytest.mark.parametrize("number", sorted(system.CANNOT))
def test_a_system_that_cannot_do_it_is_no_error(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(system, "_renameat2", lambda: refuse)
    out, made = make(tmp_path / "out", "old"), make(tmp_path / "made", "new")
    put_in_place(made, out)
    assert names(out) == ["config.json", "new"]
    assert names(tmp_path) == [f"made.{REPLACED}", "out"]


def test_a_system_without_the_call_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_renameat2", lambda: None)
    assert not exchange(tmp_path, tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, OSError])
def test_the_old_folder_is_back_after_any_error(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, made = make(tmp_path / "out", "old"), make(tmp_path / "made", "new")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self == made:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(system, "exchange", lambda first, second: False)
    with pytest.raises(error):
        put_in_place(made, out)
    assert names(out) == ["config.json", "old"]
    assert names(tmp_path) == ["made", "out"]


def test_what_was_replaced_is_kept_while_nothing_is_in_its_place(tmp_path: Path) -> None:
    aside = make(tmp_path / "aside", "old")
    discard(aside, tmp_path / "out")
    assert aside.exists()
    assert restore(tmp_path / "out", aside)
    assert names(tmp_path / "out") == ["config.json", "old"]
    assert not restore(tmp_path / "out", aside)


def test_an_export_stopped_between_two_renames_keeps_the_old_one(
    place: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it cannot be brought back now, it is not removed."""
    out = place()
    rename, allowed = Path.rename, 1

    def fail(self: Path, target: Path) -> Path:
        nonlocal allowed
        if allowed:
            allowed -= 1
            return rename(self, target)
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        patch.setattr(system, "exchange", lambda first, second: False)
        with pytest.raises(Exception, match="input/output error"):
            export(out)
    assert not out.exists()
    assert names(partial_folder(out) / f"artifact.{REPLACED}") == ["config.json", "old"]
    repair(out)
    assert names(out) == ["config.json", "old"]
    assert not partial_folder(out).exists()


def test_what_was_mended_is_said_in_one_line(
    place: Callable[[], Path], caplog: pytest.LogCaptureFixture
) -> None:
    out = place()
    folder = partial_folder(out)
    folder.mkdir()
    (folder / "lock").touch()
    out.rename(folder / f"artifact.{REPLACED}")
    assert not repair(out)
    assert caplog.messages == [
        f"{out} was being replaced when a process ended: it is as it was before"
    ]
    caplog.clear()
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "report").mkdir()
    (folder / "report" / DATA).write_text("new")
    (folder / "commit.json").write_text(json.dumps({"artifact_sha256": artifact_digest(out)}))
    assert repair(out)
    assert (report_folder(out) / DATA).read_text() == "new"
    assert caplog.messages == [
        f"{out} was complete when a process ended: its report is in place now"
    ]
    assert names(out.parent) == ["out", "out-report"]


@pytest.mark.parametrize("note", [b"", b"[]", b"{}", b"[" * 5000, b'{"artifact_sha256": 3}'])
def test_a_damaged_note_says_nothing(note: bytes, place: Callable[[], Path]) -> None:
    out = place()
    folder = partial_folder(out)
    (folder / "report").mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "commit.json").write_bytes(note)
    assert not repair(out)
    assert (report_folder(out) / DATA).read_text() == "old"
    assert names(out.parent) == ["out", "out-report"]


def test_nothing_is_mended_while_another_process_is_at_work(place: Callable[[], Path]) -> None:
    out = place()
    with Partial(out) as partial:
        (partial.artifact / "a").touch()
        assert not repair(out)
        assert (partial.artifact / "a").exists()


def test_reports_in_the_making_that_older_versions_left_are_removed(
    place: Callable[[], Path],
) -> None:
    out = place()
    (out.parent / ".out-report.abcdefgh").mkdir()
    (out.parent / ".out-report.abcdefgh" / DATA).touch()
    mine = out.parent / ".out-report.mine1234"
    mine.mkdir()
    (mine / "notes").touch()
    repair(out)
    assert names(out.parent) == [".out-report.mine1234", "out", "out-report"]


def interrupted_inside(seen: list[str]) -> None:
    with undisturbed():
        signal.raise_signal(signal.SIGINT)
        seen.append("done")


def test_signals_wait_until_names_have_changed() -> None:
    seen: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append("handled"))
    try:
        with undisturbed():
            signal.raise_signal(signal.SIGTERM)
            seen.append("done")
        assert seen == ["done", "handled"]
        with pytest.raises(KeyboardInterrupt):
            interrupted_inside(seen)
        assert seen[2:] == ["done"]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not stopping._asked.number
