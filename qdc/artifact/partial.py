"""The folder beside OUT in which an artifact is made: ``.OUT.partial``.

Its name follows from OUT, so that a later process finds what an earlier one has finished. It holds
the artifact in the making, a lock, and once a step is finished a journal with what it needs. It is
gone when the artifact is in its place, and after a failure that has nothing to go on from.

A process may be killed while the artifact takes its place, and its report after it. Before that a
note says which artifact it is, so that the next process finds out how far it came, and ``settle``s.
"""

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from types import TracebackType

from qdc.artifact.commit import (
    DATA,
    PAGE,
    artifact_digest,
    place_report,
    report_folder,
    restore,
    set_aside_name,
)
from qdc.artifact.journal import JOURNAL, Journal, read_journal
from qdc.artifact.lockedfolder import (
    ARTIFACT,
    KEPT,
    LOCK,
    LockedFolder,
    keep_only,
    lock_left,
    make_folders,
)
from qdc.artifact.rankfolder import discard_ranks
from qdc.disk import read_regular, unwritable, write_bytes
from qdc.errors import (
    InvalidCalibration,
    InvalidJournal,
    InvalidPipeline,
    OrderOutOfRange,
    OutputExists,
    QdcError,
    UnknownName,
    UnsupportedModel,
)
from qdc.stopping import undisturbed

REPORT, NOTE = "report", "commit.json"
LARGEST_NOTE = 1 << 12
log = logging.getLogger(__name__)
HOW = "go on with --resume, or discard it with --restart"


def partial_folder(out: Path) -> Path:
    """Where the artifact ``out`` is made."""
    out = out.absolute()
    return out.with_name(f".{out.name}.partial")


def check_interrupted(out: Path, *, resume: bool, restart: bool) -> None:
    """Refuse to begin where a compile was interrupted, before anything is read.

    Raises:
        OutputExists: an interrupted compile is there, and nobody says what to do with it; or the
            folder is none of qdc.
        InvalidJournal: its journal is damaged.
    """
    folder = partial_folder(out)
    if not os.path.lexists(folder):
        return
    try:
        _check_owner(folder)
        if restart:
            return
        journal = read_journal(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    if journal is None or resume:
        return
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


def repair(out: Path) -> bool:
    """Finish or undo what an earlier process has left at ``out`` when it was killed.

    Called before anybody looks at ``out``. Says in a line what was done, and does nothing while
    another process is at work there.

    Returns:
        Whether an artifact that was complete has been found in its place.

    Raises:
        QdcError: the file system refuses.
    """
    out, folder = out.absolute(), partial_folder(out)
    _sweep_reports(out)
    if not os.path.lexists(folder):
        discard_ranks(out)
    if folder.is_symlink() or not folder.is_dir():
        return False
    lock = lock_left(folder, str(out))
    if lock is None:
        return False
    try:
        committed = settle(folder, out)
        if not os.path.lexists(folder / JOURNAL) and not _holds_the_only_one(folder, out):
            _remove_all(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        lock.release()
    return committed


def settle(folder: Path, out: Path) -> bool:
    """Finish or undo the commit that was going on when a process ended. Raises OSError.

    Args:
        folder: the folder in which the artifact was made; its lock is held.
        out: where the artifact was to appear.

    Returns:
        Whether it is there: nothing in ``folder`` is needed any more.
    """
    if restore(out, set_aside_name(folder / ARTIFACT)):
        log.warning("%s was being replaced when a process ended: it is as it was before", out)
    if not _is_committed(folder, out):
        return False
    staged = folder / REPORT
    if not staged.is_symlink() and any(os.path.lexists(staged / name) for name in (PAGE, DATA)):
        place_report(staged, out)
        log.warning("%s was complete when a process ended: its report is in place now", out)
    # A journal would say that there is something to go on with.
    (folder / JOURNAL).unlink(missing_ok=True)
    return True


def _is_committed(folder: Path, out: Path) -> bool:
    """Whether the artifact at ``out`` is the one that was made in the folder."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, RecursionError, QdcError):
        noted = json.loads(read_regular(folder / NOTE, LARGEST_NOTE))["artifact_sha256"]
        return out.is_dir() and not out.is_symlink() and artifact_digest(out) == noted
    return False


def _holds_the_only_one(folder: Path, out: Path) -> bool:
    """Whether an artifact was set aside and nothing is in its place: never to be removed."""
    return os.path.lexists(set_aside_name(folder / ARTIFACT)) and not os.path.lexists(out)


def _sweep_reports(out: Path) -> None:
    """Remove reports in the making that versions of qdc before this one left when they ended."""
    prefix = f".{report_folder(out).name}."
    with contextlib.suppress(OSError):
        for path in out.parent.iterdir():
            name = path.name
            if len(name) != len(prefix) + 8 or not name.startswith(prefix) or path.is_symlink():
                continue
            if path.is_dir() and {child.name for child in path.iterdir()} <= {DATA, PAGE}:
                shutil.rmtree(path)
                log.warning("removed %s, which an earlier process has left", path)


class Partial(LockedFolder):
    """The folder while a compile runs; a context that cleans up behind it."""

    def __init__(self, out: Path, *, resume: bool = False, restart: bool = False) -> None:
        """Make the folder or take it over, and lock it.

        Raises:
            OutputExists: another compile is at work there, or was interrupted.
            QdcError: the file system refuses.
        """
        super().__init__(partial_folder(out))
        self.out = out.absolute()
        self.report = self.folder / REPORT
        """Where the report waits until the artifact is in its place."""
        taken = False
        try:
            with undisturbed():
                self._take(resume=resume, restart=restart)
                taken = True
        except BaseException as error:
            if taken:  # a signal came in the meantime, and nobody will leave the block
                self.__exit__(type(error), error, None)
            raise

    def _take(self, *, resume: bool, restart: bool) -> None:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(self.folder):
                _check_owner(self.folder)
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder.parent, error) from error
        with self._locked(str(self.out)):
            settle(self.folder, self.out)
            check_interrupted(self.out, resume=resume, restart=restart)
            self.journal = None if restart else read_journal(self.folder)
            if self.journal is None:
                discard_ranks(self.out)
            self._clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove everything, or after a failure all but what can be gone on from."""
        with undisturbed():
            try:
                done = error is None or settle(self.folder, self.out)
                done = done or self.journal is None or self._is_futile(error)
                if done and not _holds_the_only_one(self.folder, self.out):
                    _remove_all(self.folder)
            except OSError:
                done = False  # whatever is left, the next process settles
            if error is not None and self.journal is not None and not done:
                shutil.rmtree(self.scratch, ignore_errors=True)
                if not isinstance(error, InvalidJournal):
                    error.add_note(f"{self.journal.progress}; {HOW}")
            self._lock.release()

    def _is_futile(self, error: BaseException | None) -> bool:
        """Whether the text was refused before anything was drawn of it, or an option or the model.

        A journal is of one text, one model and one pipeline, so nothing can go on from this one
        with better ones.
        """
        drawn = self.journal is not None and self.journal.text
        if isinstance(error, InvalidCalibration):
            return not drawn
        return isinstance(error, InvalidPipeline | OrderOutOfRange | UnsupportedModel | UnknownName)

    def note_commit(self) -> None:
        """Note which artifact is about to take its place. Raises ``QdcError``."""
        data = {"artifact_sha256": artifact_digest(self.artifact)}
        write_bytes(self.folder / NOTE, json.dumps(data).encode())

    def save(self, journal: Journal) -> None:
        """Write a journal whose files are all complete, then remove what only older ones name."""
        journal.write(self.folder)
        self.journal = journal
        self._sweep_kept(journal)

    def _clear(self) -> None:
        """Remove what no journal speaks of."""
        journal = self.journal
        keep_only(self.folder, {LOCK} if journal is None else {LOCK, JOURNAL, ARTIFACT, KEPT})
        make_folders(self.artifact, self.kept, self.scratch)
        if journal is not None:
            keep_only(self.artifact, {f.name for entry in journal.entries for f in entry.written})
            self._sweep_kept(journal)


def _remove_all(folder: Path) -> None:
    """Remove a folder whose lock is held. Raises OSError.

    The journal goes first: without it what is left says nothing. The lock goes last: once it is
    gone, what is there belongs to another.
    """
    (folder / JOURNAL).unlink(missing_ok=True)
    keep_only(folder, {LOCK})
    (folder / LOCK).unlink(missing_ok=True)
    folder.rmdir()
