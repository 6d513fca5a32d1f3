"""Put what is complete in its place, so that a process may end at any moment and nothing is lost.

A folder that replaces another changes places with it in one step, where the system can do that.
Elsewhere the old one is set aside under a name that says so, and then the new one is renamed: if a
process ends between the two, ``restore`` brings the old one back.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from qdc.artifact import exchange as system
from qdc.artifact.digests import CARD
from qdc.disk import read_regular, sync_folder
from qdc.errors import QdcError
from qdc.stopping import undisturbed

LARGEST = 1 << 28
"""Bytes of a file of an artifact that is no shard."""
REPLACED = "replaced"
"""What is added to the folder's name for the artifact that stood in its place."""
DATA, PAGE = "report.json", "report.html"
WITH_TENSORS = (".safetensors", ".gguf")
"""Ends of the names of files with tensors, which may be larger."""


class SingleFile(NamedTuple):
    """A file that takes the place of the folder it was made in.

    Attributes:
        name: in the folder.
        magic: bytes with which it begins, by which one is known that may be replaced.
    """

    name: str
    magic: bytes


def report_folder(out: Path) -> Path:
    """Where the report of the artifact ``out`` lies."""
    out = out.absolute()
    return out.with_name(f"{out.name}-report")


def set_aside_name(made: Path) -> Path:
    """Where the folder goes that ``made`` takes the place of."""
    return made.with_name(f"{made.name}.{REPLACED}")


def put_in_place(made: Path, out: Path) -> None:
    """Make a folder appear at ``out``; what was there is then at ``made`` or set aside.

    Raises:
        OSError: the file system refuses; what was there is there.
    """
    aside = set_aside_name(made)
    with undisturbed():
        if not os.path.lexists(out) or not any(out.iterdir()):
            made.rename(out)  # which may take the place of an empty folder
        elif not system.exchange(made, out):
            discard(aside, out)
            try:
                out.rename(aside)
                made.rename(out)
            except BaseException:
                restore(out, aside)
                raise
    sync_folder(out.parent)


def put_file_in_place(made: Path, out: Path) -> None:
    """Make one file appear at ``out``, and replace a file there, in one step. Raises OSError."""
    with undisturbed():
        made.replace(out)
    sync_folder(out.parent)


def restore(out: Path, aside: Path) -> bool:
    """Bring back what was set aside, if nothing is at ``out``. Raises OSError.

    Returns:
        Whether it was needed.
    """
    if os.path.lexists(out) or not os.path.lexists(aside):
        return False
    aside.rename(out)
    sync_folder(out.parent)
    return True


def discard(replaced: Path, out: Path) -> None:
    """Remove what another folder has taken the place of, and never the only one there is."""
    if os.path.lexists(out):
        shutil.rmtree(replaced, ignore_errors=True)


def place_report(staged: Path, out: Path) -> None:
    """Put the two files of a report in place, or those that are not yet there.

    A report that is there keeps what others have added to its folder, so its files are replaced one
    by one: the page first, as it can be drawn again from the data.

    Raises:
        OSError: the file system refuses.
    """
    folder = report_folder(out)
    with undisturbed():
        if not os.path.lexists(folder):
            staged.rename(folder)
        else:
            for name in (PAGE, DATA):
                if os.path.lexists(staged / name):
                    (staged / name).replace(folder / name)
    sync_folder(folder)
    sync_folder(folder.parent)


def artifact_digest(folder: Path) -> str:
    """SHA-256 over names and bytes of the files other than those with tensors and the card.

    Among them is the IR dump, which names the digest of every packed tensor. Raises ``QdcError``
    for a file that cannot be read, or is larger than any of them can be.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in WITH_TENSORS and path.name != CARD and path.is_file():
            try:
                data = read_regular(path, LARGEST)
            except OSError as error:
                reason = (error.strerror or "unknown reason").lower()
                raise QdcError(f"cannot read {path.name}: {reason}", where=[str(path)]) from error
            digest.update(f"{path.name}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest()
