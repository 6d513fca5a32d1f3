"""Digests of an artifact's files, in one file beside them: bits that have flipped are noticed.

Its form is that of ``sha256sum``, so that ``sha256sum --check qdc.sha256`` needs no qdc. It says
whether the files are as they were written, and not by whom: nothing signs it.
"""

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from qdc.checkpoint.folder import BYTE_PAIR_FILES, TOKENIZER_FILES
from qdc.checkpoint.layout import not_readable
from qdc.errors import InvalidArtifact
from qdc.modelfiles import open_inside, read_inside

DIGESTS = "qdc.sha256"
CARD = "README.md"
"""For people, who may change it: no digest covers it."""
COMPANIONS = (*TOKENIZER_FILES, *BYTE_PAIR_FILES)
"""Files beside the weights that decide what a text becomes."""
LARGEST, PIECE = 1 << 22, 1 << 22
MOST_THREADS = 8
"""At this number SHA-256 is as fast as files come out of the page cache."""
LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\0]{1,255})")
RENEWED = f"if it was changed on purpose, write {DIGESTS} anew (sha256sum) or remove it"
log = logging.getLogger(__name__)


def digests_text(digests: Mapping[str, str]) -> bytes:
    """What the file holds: a line for each file, by name."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()


@dataclass(frozen=True)
class Digests:
    """What is known of the files of an artifact's folder."""

    folder: Path
    listed: Mapping[str, str] | None
    """SHA-256 by name; None if nothing is known, and nothing is compared."""

    @classmethod
    def of(cls, folder: Path) -> "Digests":
        """Read the digests of a folder; an artifact that was written before them has none.

        Raises:
            InvalidArtifact: the file is damaged.
        """
        path = folder / DIGESTS
        if not os.path.lexists(path):
            return cls(folder, None)
        try:
            lines = read_inside(path, LARGEST).decode("utf-8").splitlines()
        except OSError as error:
            raise _not_read(path, error) from error
        except UnicodeDecodeError as error:
            raise _damaged(path, "is no text in UTF-8") from error
        found: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            match = LINE.fullmatch(line)
            if match is None or match[2] in found:
                raise _damaged(path, f"says nothing that can be read in line {number}")
            found[match[2]] = match[1]
        return cls(folder, found)

    @classmethod
    def unread(cls, folder: Path) -> "Digests":
        """Those of a folder whose files are taken as they are."""
        return cls(folder, None)

    def tell_missing(self) -> None:
        """Say in the log that nothing can be compared, if that is so."""
        if self.listed is None:
            log.warning("%s has no digests (%s): its files are not verified", self.folder, DIGESTS)

    def differs(self, name: str, stop: Callable[[], bool] = lambda: False) -> str:
        """What is wrong with a file; nothing if it is as it was written.

        Raises OSError if it cannot be read. Ends early, without an answer, when ``stop`` says so.
        """
        if self.listed is None:
            return ""
        if name not in self.listed:
            return f"{name}: {DIGESTS} has no digest of it"
        digest, piece = hashlib.sha256(), bytearray(PIECE)
        with os.fdopen(open_inside(self.folder / name), "rb", buffering=0) as file:
            while not stop() and (size := file.readinto(piece)):
                digest.update(memoryview(piece)[:size])
        return "" if stop() or digest.hexdigest() == self.listed[name] else name

    def check(self, names: Iterable[str]) -> None:
        """Compare files. Raises ``InvalidArtifact``, naming all that differ."""
        self._refuse([self._checked(name) for name in names])

    def check_companions(self) -> None:
        """Compare tokenizer, template and settings of generation.

        One that was put there later has no digest, which is said in the log.

        Raises:
            InvalidArtifact: one differs, or is gone.
        """
        if self.listed is None:
            return
        there = [name for name in COMPANIONS if os.path.lexists(self.folder / name)]
        for name in (name for name in there if name not in self.listed):
            log.warning("%s has no digest in %s: not verified", self.folder / name, DIGESTS)
        self.check(name for name in COMPANIONS if name in self.listed)

    @contextmanager
    def beside(self, names: Iterable[str]) -> Iterator[None]:
        """Compare files in threads while something else reads them.

        What else the list names is compared too: what nobody reads here does no harm, and is said
        in the log.

        Args:
            names: files that are read.

        Raises:
            InvalidArtifact: some of them differ, as is said when the block is left.
        """
        if self.listed is None:
            yield
            return
        stopped = threading.Event()
        with ThreadPoolExecutor(_threads(), thread_name_prefix="digests") as pool:
            read = list(names)
            answers = [pool.submit(self._checked, name, stopped.is_set) for name in read]
            others = [
                pool.submit(self._unread, name, stopped.is_set)
                for name in self.listed
                if name not in read
            ]
            try:
                yield
            except BaseException:
                stopped.set()
                raise
            self._refuse([answer.result() for answer in answers])
            for changed in filter(None, (other.result() for other in others)):
                log.warning(
                    "%s is not as the artifact was written; nothing that was loaded is of it",
                    self.folder / changed,
                )

    def _unread(self, name: str, stop: Callable[[], bool]) -> str:
        """The same of a file that is not read: one that is gone, or is no file, says nothing."""
        with suppress(OSError):
            return self.differs(name, stop)
        return ""

    def _checked(self, name: str, stop: Callable[[], bool] = lambda: False) -> str:
        try:
            return self.differs(name, stop)
        except OSError as error:
            raise _not_read(self.folder / name, error) from error

    def _refuse(self, problems: Iterable[str]) -> None:
        wrong = [problem for problem in problems if problem]
        if wrong:
            raise InvalidArtifact(
                f"{'a file is' if len(wrong) == 1 else f'{len(wrong)} files are'} not as the "
                "artifact was written",
                where=wrong,
                help=f"copy the folder again, or see what is left of it: qdc verify {self.folder}; "
                f"{RENEWED}",
            )


def _threads() -> int:
    """One for each processor that this process may use; two where that is one or unknown."""
    usable = getattr(os, "sched_getaffinity", lambda process: ())(0)
    return min(MOST_THREADS, max(2, len(usable) or os.cpu_count() or 2))


def _not_read(path: Path, error: OSError) -> InvalidArtifact:
    found = not_readable(path, error)
    return InvalidArtifact(found.what, where=found.where, help=found.help)


def _damaged(path: Path, what: str) -> InvalidArtifact:
    return InvalidArtifact(
        f"{DIGESTS} {what}", where=[str(path)], help=f"copy the folder again; {RENEWED}"
    )
