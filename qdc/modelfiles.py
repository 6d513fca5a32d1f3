"""The files of a model's folder, which may be links: none of them leads out of it.

A folder comes from a stranger, and what is read from it is copied into artifacts and exports. A
link to a file of whoever compiles would hand that on. Caches of the hub are full of links, into
the folder ``blobs`` beside the snapshots; those are followed.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdc.disk import LFS, POINTER

OUTSIDE = "it is a link to a file outside the model's folder"
COPY = (
    "put a copy of the file in its place; links may lead into the folder and the hub's cache alone"
)
"""What to do about it."""
SNAPSHOTS, REPOSITORY, BLOBS = "snapshots", "models--", "blobs"
"""Names in a cache of the hub: ``models--org--name/snapshots/HASH/file -> ../../blobs/DIGEST``."""


def read_inside(path: Path, most: int) -> bytes:
    """Read a file of a model's folder, the folder being that in which the path lies.

    Raises OSError for what cannot be read, for a pipe, a device or a folder, for more than ``most``
    bytes, for a pointer of Git LFS, and for a link that leads out; its ``strerror`` says which.
    """
    handle = open_inside(path)
    with os.fdopen(handle, "rb") as file:
        size = os.fstat(handle).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB", str(path))
        content = file.read(size)
    if content.startswith(LFS):
        raise OSError(errno.EINVAL, POINTER, str(path))
    return content


def open_inside(path: Path) -> int:
    """Open a file of a model's folder for reading; what was opened is what is looked at.

    Raises OSError for what cannot be opened, is no regular file, or lies elsewhere.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            code = errno.EISDIR if stat.S_ISDIR(os.fstat(handle).st_mode) else errno.EINVAL
            what = "is a directory" if code == errno.EISDIR else "it is no regular file"
            raise OSError(code, what, str(path))
        if not _lies_inside(handle, path):
            raise OSError(errno.ELOOP, OUTSIDE, str(path))
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextmanager
def pinned(path: Path) -> Iterator[tuple[str, int]]:
    """Yield a name under which libraries open the very file that was looked at, and its handle.

    Raises as ``open_inside``.
    """
    handle = open_inside(path)
    try:
        name = f"/proc/self/fd/{handle}"
        yield name if os.path.exists(name) else str(path), handle  # noqa: PTH110
    finally:
        os.close(handle)


def _lies_inside(handle: int, path: Path) -> bool:
    """Whether an open file lies in the folder of its path, or in the blobs of that one's cache."""
    folder = os.path.realpath(path.parent)
    place = _place(handle, path)
    return place is not None and any(
        os.path.commonpath((place, root)) == root for root in (folder, *_blobs(folder))
    )


def _place(handle: int, path: Path) -> str | None:
    """Where an open file lies, by what the system knows of it, not by its name; None if unknown."""
    try:
        place = os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115
        if os.path.isabs(place):  # noqa: PTH117
            return place
    except OSError:
        pass  # a system without /proc
    place = os.path.realpath(path)
    try:
        same = os.path.samestat(os.lstat(place), os.fstat(handle))
    except OSError:
        return None
    return place if same else None


def _blobs(folder: str) -> Iterator[str]:
    """The blobs of the cache in which a folder is a snapshot, or lies in one."""
    for place in (Path(folder), *Path(folder).parents):
        repository = place.parent.parent
        if place.parent.name == SNAPSHOTS and repository.name.startswith(REPOSITORY):
            yield str(repository / BLOBS)
            return
