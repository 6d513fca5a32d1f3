"""A folder in which one process works on a compile, under a lock, and can be gone on from."""

import contextlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from qdc.artifact.journal import Journal
from qdc.artifact.lock import Lock
from qdc.disk import unwritable
from qdc.errors import OutputExists

LOCK, ARTIFACT, KEPT, SCRATCH = "lock", "artifact", "kept", "scratch"


class LockedFolder(ABC):
    """The folder while a process works there; a context that cleans up behind it."""

    _lock: Lock

    def __init__(self, folder: Path) -> None:
        """Name what will be in it; nothing is made yet."""
        self.folder = folder
        self.artifact, self.kept = folder / ARTIFACT, folder / KEPT
        self.scratch = folder / SCRATCH
        self.journal: Journal | None = None
        """What is finished; None as long as nothing is."""

    @abstractmethod
    def save(self, journal: Journal) -> None:
        """Let a journal count whose files are complete, then remove what only older ones name."""

    def __enter__(self) -> Self:
        """Hold the lock of the folder until the block is left."""
        return self

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove everything, or after a failure all but what can be gone on from."""

    @contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        """Take the lock, and release it if the block fails; after it ``__exit__`` does that.

        Args:
            what: what two processes would write to, for the message.

        Raises:
            OutputExists: another process has it.
            QdcError: the file system refuses, also in the block.
        """
        self._lock = Lock(self.folder / LOCK, what)
        try:
            yield
        except OSError as error:
            self._lock.release()
            raise unwritable(self.folder, error) from error
        except BaseException:
            self._lock.release()
            raise

    def _sweep_kept(self, journal: Journal) -> None:
        """Remove what the journal does not name: out of date, or left when a process ended."""
        keep_only(self.kept, {file.name for entry in journal.entries for file in entry.kept()})


def keep_only(folder: Path, names: Collection[str]) -> None:
    """Remove all in a folder that has another name. Raises OSError."""
    for path in folder.iterdir():
        if path.name not in names:
            remove(path)


def make_folders(*folders: Path) -> None:
    """Make folders, also where something else is: a link would lead elsewhere. Raises OSError."""
    for folder in folders:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            remove(folder)
        folder.mkdir(exist_ok=True)


def lock_left(folder: Path, what: str) -> Lock | None:
    """Lock a folder that a process has left; None if one is at work there, or it has no lock.

    Args:
        folder: is there.
        what: what two processes would write to, for the message.

    Raises:
        QdcError: the file system refuses.
    """
    if not (folder / LOCK).is_file():
        with contextlib.suppress(OSError):
            folder.rmdir()  # if it is empty: a process has ended before it took the lock
        return None
    try:
        return Lock(folder / LOCK, what)
    except OutputExists:
        return None


def remove(path: Path) -> None:
    """Remove whatever is there, or nothing. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
