"""What every process of a compile but the first keeps beside OUT: ``.OUT.partial.rank-N``.

The first process makes the artifact, and its journal says how far all have come. The others hold
parts of the calibration states, which they put down in folders of their own, on their own machines.
A step counts once the first has noted it. Before that all others have their parts of it on the
disk, in a journal that waits; after that it takes the place of the one before. So whenever
processes end, every rank has a journal of the very step that the first one noted last.
"""

import contextlib
import shutil
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from qdc.artifact.journal import DISCARD, JOURNAL, Journal, read_journal
from qdc.artifact.lockedfolder import KEPT, LOCK, LockedFolder, keep_only, lock_left, make_folders
from qdc.disk import sync_folder, unwritable
from qdc.errors import InvalidJournal, QdcError
from qdc.stopping import undisturbed

WAITING = "journal.next.json"
RANK = ".rank-"


class Noted(NamedTuple):
    """What the first process has noted."""

    run: str
    """Of which compile."""
    steps: int


def rank_folder(out: Path, rank: int) -> Path:
    """Where a process keeps its part of a compile to ``out``."""
    out = out.absolute()
    return out.with_name(f".{out.name}.partial{RANK}{rank}")


def discard_ranks(out: Path) -> None:
    """Remove parts on this machine of which no first process knows, but of those that run."""
    start = rank_folder(out, 0).name.removesuffix("0")
    with contextlib.suppress(OSError):
        for path in out.absolute().parent.iterdir():
            ours = path.name.startswith(start) and path.name.removeprefix(start).isdecimal()
            if ours and path.is_dir() and not path.is_symlink():
                _discard(path)


def _discard(folder: Path) -> None:
    with contextlib.suppress(QdcError):
        lock = lock_left(folder, str(folder))
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()


class RankFolder(LockedFolder):
    """The folder while a compile runs; nothing is in its ``artifact``, which the first writes."""

    def __init__(self, out: Path, rank: int, noted: Noted | None) -> None:
        """Make the folder or take it over, and lock it.

        Args:
            out: where the artifact will be.
            rank: of this process, not 0.
            noted: what is to be gone on from; None to begin anew.

        Raises:
            OutputExists: another process is at work there.
            InvalidJournal: it has no part of what the first process has noted.
            QdcError: the file system refuses.
        """
        super().__init__(rank_folder(out, rank))
        with undisturbed():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable(self.folder.parent, error) from error
            with self._locked(str(self.folder)):
                self._take(rank, noted)

    def _take(self, rank: int, noted: Noted | None) -> None:
        if noted is not None:
            self._go_on(rank, noted)
        keep_only(self.folder, {LOCK} if noted is None else {LOCK, JOURNAL, KEPT})
        make_folders(self.kept, self.scratch)
        if self.journal is not None:
            self._sweep_kept(self.journal)

    def _go_on(self, rank: int, noted: Noted) -> None:
        """Take the journal of the step that the first process has noted."""
        for name in (JOURNAL, WAITING):
            found = read_journal(self.folder, name)
            if found is not None and Noted(found.run, len(found.entries)) == noted:
                self.journal = found
                if name == WAITING:
                    self._put_in_place()
                return
        raise InvalidJournal(
            f"rank {rank} has no part of the interrupted compile",
            where=[str(self.folder)],
            help=f"start as many processes as before, on the same machines, or {DISCARD}",
        )

    def prepare(self, journal: Journal) -> None:
        """Put a journal down that does not count yet; its files are complete."""
        journal.write(self.folder, WAITING)

    def save(self, journal: Journal) -> None:
        """Let the journal that waits count, then remove what only older ones name."""
        try:
            self._put_in_place()
            self.journal = journal
            self._sweep_kept(journal)
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def _put_in_place(self) -> None:
        (self.folder / WAITING).replace(self.folder / JOURNAL)
        sync_folder(self.folder)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove everything, or after a failure all but what can be gone on from.

        A journal that waits may count: the first process can have noted its step in the meantime.
        """
        with undisturbed(), contextlib.suppress(OSError):
            known = self.journal is not None or (self.folder / WAITING).is_file()
            if error is None or not known:
                shutil.rmtree(self.folder, ignore_errors=True)
            else:
                shutil.rmtree(self.scratch, ignore_errors=True)
        self._lock.release()
