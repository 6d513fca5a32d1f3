"""A lock that keeps two compiles out of one folder; it ends with the process that holds it."""

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path

from qdc.disk import unwritable
from qdc.errors import OutputExists
from qdc.jsontext import parse_json

TRIES = 100


class Lock:
    """An advisory lock on a file (``flock``), which says who holds it.

    The kernel drops it when the process is gone, however it ended: no lock is ever stale.
    """

    def __init__(self, path: Path, what: str) -> None:
        """Take the lock at once. Raises ``OutputExists`` naming the process that has it.

        Args:
            path: the file; its folder is there.
            what: what two processes would write to, for the message.
        """
        self.path = path
        for _ in range(TRIES):
            try:
                path.parent.mkdir(exist_ok=True)  # as it may have gone with the lock of another
                self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            except OSError as error:
                raise unwritable(path, error) from error
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._handle)
                raise OutputExists(
                    f"another compile is writing to {what}",
                    where=[_holder(path)],
                    help="wait for it to end, or choose another -o",
                ) from None
            except OSError as error:
                os.close(self._handle)
                raise unwritable(path, error) from error
            if self._is_the_file():
                break
            os.close(self._handle)  # whoever had it before has removed the file
        else:
            raise OutputExists(f"{path} does not stay where it is", help="choose another -o")
        mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, mine.encode(), 0)

    def release(self) -> None:
        """Let others in."""
        os.close(self._handle)

    def _is_the_file(self) -> bool:
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._handle), self.path.stat())
        return False


def _holder(path: Path) -> str:
    """Whoever wrote into the lock last; it is anybody's file, so nothing of it is believed."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, OverflowError):
        with path.open("rb") as file:
            data = parse_json(file.read(1000))
        return f"process {int(data['pid'])} on {str(data['host'])[:80]!r}".replace("'", "")
    return str(path)
