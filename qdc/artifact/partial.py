"""The folder beside OUT in which an artifact is made: ``.OUT.partial``.

Its name follows from OUT, so that a later process finds what an earlier one has finished. It holds
the artifact in the making, a lock, and once a step is finished a journal with what it needs. It is
gone when the artifact is in its place, and after a failure that has nothing to go on from.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from qdc.artifact.journal import JOURNAL, File, Journal, read_journal
from qdc.artifact.lock import Lock
from qdc.artifact.writer import REPLACED
from qdc.disk import unwritable
from qdc.errors import InvalidJournal, OutputExists

LOCK = "lock"
HOW = "go on with --resume, or discard it with --restart"


def partial_folder(out: Path) -> Path:
    """Where the artifact ``out`` is made."""
    out = out.absolute()
    return out.with_name(f".{out.name}.partial")


def check_interrupted(out: Path, *, resume: bool, restart: bool) -> bool:
    """Refuse to begin where a compile was interrupted, before anything is read.

    Returns:
        Whether the interrupted compile has put its artifact at ``out``, and was ended right then.

    Raises:
        OutputExists: an interrupted compile is there, and nobody says what to do with it; or the
            folder is none of qdc.
        InvalidJournal: its journal is damaged.
    """
    folder = partial_folder(out)
    if not os.path.lexists(folder):
        return False
    try:
        _check_owner(folder)
        if restart:
            return False
        journal = read_journal(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    if journal is None:
        return False
    if resume:
        return _is_in_place(journal, folder, out)
    raise OutputExists(
        f"an interrupted compile of {out} is there: {journal.progress}",
        where=[str(folder)],
        help=HOW,
    )


def _check_owner(folder: Path) -> None:
    mine = folder.is_dir() and not folder.is_symlink()
    if not mine or (any(folder.iterdir()) and not (folder / LOCK).is_file()):
        raise OutputExists(
            f"{folder} is there and qdc did not make it",
            help="remove it, or choose another -o",
        )


def _is_in_place(journal: Journal, folder: Path, out: Path) -> bool:
    """Whether the process ended after its artifact was renamed to ``out``, in its last moments."""
    written = [file for entry in journal.entries for file in entry.written]
    if (folder / "artifact").exists() or len(journal.entries) < journal.total or not written:
        return False
    return out.is_dir() and all(file.is_whole(out) for file in written)


class Partial:
    """The folder while a compile runs; a context that cleans up behind it."""

    def __init__(self, out: Path, *, resume: bool = False, restart: bool = False) -> None:
        """Make the folder or take it over, and lock it.

        Raises:
            OutputExists: another compile is at work there, or was interrupted.
            QdcError: the file system refuses.
        """
        self.out, self.folder = out.absolute(), partial_folder(out)
        self.artifact, self.kept = self.folder / "artifact", self.folder / "kept"
        self.scratch = self.folder / "scratch"
        self.journal: Journal | None = None
        """What is finished; None as long as nothing is."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(self.folder):
                _check_owner(self.folder)
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder.parent, error) from error
        self._lock = Lock(self.folder / LOCK, str(out))
        try:
            in_place = check_interrupted(out, resume=resume, restart=restart)
            self.journal = None if restart else read_journal(self.folder)
            if in_place:
                self.out.rename(self.artifact)
            old = self.artifact.with_name(f"{self.artifact.name}.{REPLACED}")
            if old.is_dir() and not os.path.lexists(self.out) and not in_place:
                old.rename(self.out)  # a process was ended between the two renames of a commit
            self._clear()
            for folder in (self.artifact, self.kept, self.scratch):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            self._lock.release()
            raise unwritable(self.folder, error) from error
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> "Partial":
        """Hold the lock of the folder until the block is left."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove everything, or after a failure all but what can be gone on from."""
        if error is None or self.journal is None:
            self._remove_all()
        else:
            shutil.rmtree(self.scratch, ignore_errors=True)
            if not isinstance(error, InvalidJournal):
                error.add_note(f"{self.journal.progress}; {HOW}")
        self._lock.release()

    def _remove_all(self) -> None:
        """Remove the folder, the lock last: once it is gone, what is there belongs to another."""
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path.name != LOCK:
                    _remove(path)
            (self.folder / LOCK).unlink(missing_ok=True)
            self.folder.rmdir()

    def save(self, journal: Journal) -> None:
        """Write a journal whose files are all complete, then remove what only older ones name."""
        journal.write(self.folder)
        self.journal = journal
        self.sweep(self.kept, (file for entry in journal.entries for file in entry.kept()))

    def sweep(self, folder: Path, listed: Iterable[File]) -> None:
        """Remove all that is not listed: left by a process that was ended, or out of date."""
        names = {file.name for file in listed}
        for path in folder.iterdir():
            if path.name not in names:
                _remove(path)

    def _clear(self) -> None:
        """Remove what no journal speaks of."""
        ours = {LOCK} if self.journal is None else {LOCK, JOURNAL, "artifact", "kept"}
        for path in self.folder.iterdir():
            if path.name not in ours:
                _remove(path)
        if self.journal is None:
            return
        for folder in (self.artifact, self.kept):
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                _remove(folder)
            folder.mkdir(exist_ok=True)
        self.sweep(self.artifact, (f for entry in self.journal.entries for f in entry.written))
        self.sweep(self.kept, (f for entry in self.journal.entries for f in entry.kept()))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
