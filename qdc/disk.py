"""Files that are complete on disk before anything relies on them.

A write that the disk does not take is a mistake of nobody's code: it becomes one ``QdcError``.
"""

import contextlib
import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qdc.errors import QdcError

Tensors = Mapping[str, Tensor]
ELSEWHERE = "choose another -o"
LARGEST_JSON = 1 << 25
"""Bytes of a JSON file; a hundred thousand layers fit. What it may hold, ``qdc.jsontext`` says."""
LARGEST_TOKENIZER = 1 << 28
"""Bytes of a file of a tokenizer."""

LFS = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands for one that Git LFS has not fetched."""
POINTER = "it is a pointer of Git LFS; git lfs pull, or hf download, fetches the file itself"


def read_regular(path: Path, most: int) -> bytes:
    """Read a file that somebody else has put there: it may be anything, and of any size.

    Raises OSError for what cannot be read, for a pipe, a device or a folder, for more than ``most``
    bytes, and for a pointer of Git LFS; its ``strerror`` says which.
    """
    with open_regular(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def open_regular(path: Path, most: int) -> BufferedReader:
    """Open a file that somebody else has put there, to be read. Raises as ``read_regular``."""

    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # a pipe would wait for somebody to write

    file = open(path, "rb", opener=at_once)  # noqa: SIM115 - the caller closes it
    try:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB", str(path))
        if file.peek(len(LFS)).startswith(LFS):
            raise OSError(errno.EINVAL, POINTER, str(path))
    except BaseException:
        file.close()
        raise
    return file


def write_bytes(path: Path, data: bytes, help: str = ELSEWHERE) -> None:
    """Write one file and sync it. Raises ``QdcError`` if the disk does not take it."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error, help) from error


def replace_bytes(path: Path, data: bytes, help: str = ELSEWHERE) -> None:
    """Put new bytes in place of a file, atomically: at any moment it is the old or the new one.

    Raises:
        QdcError: the disk does not take it, or what is there is no file: a folder, a pipe, or a
            device, which the new file would take the place of.
    """
    refuse_special(path, help)
    aside = path.with_name(f".{path.name}.new")  # hidden: nobody's own file has such a name
    refuse_special(aside, help)
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:  # a signal, too, leaves nothing behind
        with contextlib.suppress(OSError):
            aside.unlink()
        if not isinstance(error, OSError):
            raise
        raise unwritable(path, error, help) from error
    sync_folder(path.parent)


def refuse_special(path: Path, help: str = ELSEWHERE) -> None:
    """Raise ``QdcError`` where no file can be put: at a folder, a pipe or a device."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise unwritable(path, error, help) from error
    if not stat.S_ISREG(mode):
        what = "is a directory" if stat.S_ISDIR(mode) else "it is no regular file"
        raise QdcError(f"cannot write to {path}: {what}", help=help)


def write_tensors(
    path: Path, tensors: Tensors, help: str = ELSEWHERE, *, sync: bool = True
) -> None:
    """Write one safetensors file and sync it. Raises ``QdcError`` if the disk does not take it."""
    try:
        save_file(dict(_separate(tensors)), path, metadata={"format": "pt"})
        path.chmod(usual_mode(path.parent))  # safetensors makes files that only their owner reads
        if sync:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error, help) from error


def usual_mode(folder: Path) -> int:
    """Permissions that a new file gets here, by the umask of the process or the folder's own rules.

    A file is made to see it: to ask for the umask is to change it, for all threads. Raises OSError.
    """
    with tempfile.TemporaryDirectory(prefix=".mode.", dir=folder) as aside:
        probe = Path(aside) / "probe"
        probe.touch()
        return stat.S_IMODE(probe.stat().st_mode)


def open_folder(folder: Path) -> None:
    """Give a folder that ``tempfile`` has made the permissions of any new one. Raises OSError."""
    mode = usual_mode(folder)
    folder.chmod(0o700 | mode | (mode & 0o444) >> 2)


def _separate(tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor in memory of its own on the CPU: a file holds no views."""
    seen = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        memory = plain.untyped_storage().data_ptr()
        yield name, plain.clone() if memory in seen else plain
        seen.add(memory)


def unwritable(path: Path, error: Exception, help: str = ELSEWHERE) -> QdcError:
    """The error that says which file could not be written, and why."""
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    return QdcError(f"cannot write to {path}: {reason}", help=help)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as their files are."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes; empty if it is not there, unreadable, or no regular file."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
