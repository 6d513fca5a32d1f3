"""The folder in which an artifact is made: one process at a time, nothing of others removed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qdc.artifact.commit import set_aside_name
from qdc.artifact.journal import Entry, File, Journal, read_journal
from qdc.artifact.lock import Lock
from qdc.artifact.partial import Partial, check_interrupted, partial_folder
from qdc.errors import OutputExists, QdcError
from tests.support.commands import environment

HOLD = """
import sys, time
from pathlib import Path
from qdc.artifact.lock import Lock
lock = Lock(Path(sys.argv[1]), "out")
print("held", flush=True)
time.sleep(100)
"""
not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")


class Stopped(Exception):
    """Somebody pulled the plug."""


def stop(out: Path, work: Callable[[Partial], object], **options: bool) -> None:
    """Work in the folder, then fail."""
    with Partial(out, **options) as partial:
        work(partial)
        raise Stopped


def journal(*files: File, total: int = 2) -> Journal:
    entry = Entry(step="blocks.0", tensors=files)
    return Journal(
        identity={"seed": "1"}, total=total, entries=(entry,), linear_calls=0, samples=0,
        passes=(), remarks=(), seconds=0, resumed=0,
    )  # fmt: skip


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock ``tmp_path / "lock"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")],
        stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_lock_names_the_process_that_has_it_and_ends_with_it(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(OutputExists, match="another compile is writing to out") as caught:
        Lock(tmp_path / "lock", "out")
    assert f"process {holder.pid} on " in caught.value.where[0]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    Lock(tmp_path / "lock", "out").release()


def test_a_released_lock_is_free(tmp_path: Path) -> None:
    first = Lock(tmp_path / "lock", "out")
    with pytest.raises(OutputExists):
        Lock(tmp_path / "lock", "out")
    first.release()
    Lock(tmp_path / "lock", "out").release()


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b'{"pid": []}', b'{"pid": 1e999}', b"[" * 2000]
)
def test_what_stands_in_a_lock_is_not_believed(content: bytes, tmp_path: Path) -> None:
    held = Lock(tmp_path / "lock", "out")
    (tmp_path / "lock").write_bytes(content)
    with pytest.raises(OutputExists) as caught:
        Lock(tmp_path / "lock", "out")
    assert caught.value.where == (str(tmp_path / "lock"),)
    held.release()


def test_a_lock_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "lock").symlink_to("file")
    with pytest.raises(QdcError, match="cannot write to"):
        Lock(tmp_path / "lock", "out")
    assert (tmp_path / "file").read_text() == "mine"


def test_two_compiles_do_not_share_a_folder(tmp_path: Path) -> None:
    with Partial(tmp_path / "out") as partial:
        (partial.artifact / "a").write_text("a")
        with pytest.raises(OutputExists, match="another compile is writing to"):
            Partial(tmp_path / "out", restart=True)
        assert (partial.artifact / "a").read_text() == "a"
        with Partial(tmp_path / "other"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_failure_without_a_journal_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as caught:
        stop(tmp_path / "out", lambda partial: (partial.kept / "a").write_text("a"))
    assert not hasattr(caught.value, "__notes__")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_with_one_leaves_what_it_names(tmp_path: Path) -> None:
    out, left = tmp_path / "out", partial_folder(tmp_path / "out")

    def work(partial: Partial) -> None:
        for name in ("old", "new"):
            (partial.kept / name).write_text(name)
            partial.save(journal(File.of(partial.kept / name)))
        (partial.scratch / "a").write_text("a")

    with pytest.raises(Stopped) as caught:
        stop(out, work)
    (note,) = caught.value.__notes__
    assert note.startswith("1 of 2 steps are done, the last is blocks.0; go on with --resume")
    assert sorted(path.name for path in left.iterdir()) == [
        "artifact", "journal.json", "kept", "lock",
    ]  # fmt: skip
    (left / "kept" / "left over").write_text("a")
    (left / "scratch").mkdir()
    (left / "scratch" / "old").write_text("a")
    with Partial(out, resume=True) as again:
        assert again.journal is not None
        assert [file.name for file in again.journal.entries[0].tensors] == ["new"]
        assert [path.name for path in again.kept.iterdir()] == ["new"]
        assert list(again.scratch.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_compile_is_neither_overwritten_nor_forgotten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        stop(out, lambda partial: partial.save(journal()))
    for refuse in (Partial, check_interrupted):
        with pytest.raises(OutputExists, match="1 of 2 steps are done") as caught:
            refuse(out, resume=False, restart=False)
        assert caught.value.help == "go on with --resume, or discard it with --restart"
    assert read_journal(partial_folder(out)) is not None
    with pytest.raises(Stopped):
        stop(out, lambda partial: None, restart=True)
    assert list(tmp_path.iterdir()) == []


def test_what_no_compile_has_finished_a_step_of_is_begun_anew(tmp_path: Path) -> None:
    folder = partial_folder(tmp_path / "out")
    (folder / "artifact").mkdir(parents=True)
    (folder / "lock").write_text(json.dumps({"pid": 1, "host": "gone"}))
    (folder / "artifact" / "half").write_text("a")
    with Partial(tmp_path / "out") as partial:
        assert list(partial.artifact.iterdir()) == []


@pytest.mark.parametrize("restart", [False, True])
def test_an_artifact_that_was_being_replaced_comes_back(restart: bool, tmp_path: Path) -> None:
    """A kill between the two renames of a commit."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "qdc"}}))
    partial = Partial(out)
    partial.save(journal())
    out.rename(set_aside_name(partial.artifact))
    partial._lock.release()
    assert not out.exists()
    with Partial(out, resume=not restart, restart=restart):
        assert (out / "config.json").exists()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
@pytest.mark.parametrize("restart", [False, True])
def test_what_qdc_did_not_make_is_left_alone(kind: str, restart: bool, tmp_path: Path) -> None:
    folder = partial_folder(tmp_path / "out")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes").write_text("mine")
    if kind == "file":
        folder.write_text("mine")
    elif kind == "link":
        folder.symlink_to(mine)
    else:
        mine.rename(folder)
        mine = folder
    for start in (Partial, check_interrupted):
        with pytest.raises(OutputExists, match="qdc did not make it"):
            start(tmp_path / "out", resume=not restart, restart=restart)
    assert (mine / "notes").read_text() == "mine"


@not_as_root
def test_a_parent_that_is_read_only_says_so(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(QdcError, match="permission denied"):
        Partial(closed / "out")


def test_a_parent_that_takes_no_folder_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a read-only disk says to everybody, root included."""

    def mkdir(self: Path, *_: object, **__: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(QdcError, match="read-only file system") as caught:
        Partial(tmp_path / "out")
    assert caught.value.help == "choose another -o"


def test_the_lock_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another compile could begin while this one still removes."""
    taken = []
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "lock":
            taken.append(sorted(found.name for found in path.parent.iterdir()))
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with Partial(tmp_path / "out") as partial:
        (partial.kept / "a").write_text("a")
    assert taken == [["lock"]]
    assert not partial.folder.exists()
