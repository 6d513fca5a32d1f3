"""Write an artifact folder atomically: everything goes to a temporary folder first.

Files are synced to disk, then the folder is renamed. A failed compile leaves what was there before.
"""

import contextlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qdc.errors import InvalidArtifact, OutputExists, QdcError

METHOD = "qdc"
CONFIG = "config.json"


class ArtifactWriter:
    """A folder in the making; ``commit`` makes it appear, ``abort`` leaves no trace."""

    def __init__(self, out: Path, *, force: bool = False) -> None:
        """Check the target. Raises ``QdcError`` unless it is free, empty, or may be replaced."""
        self.out, self.force = out.absolute(), force
        self.tensor_bytes = 0
        """Bytes of tensor data written."""
        check_target(self.out, force=force)
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", dir=self.out.parent))
        except OSError as error:
            raise _unwritable(self.out.parent, error) from error
        self._shards: dict[str, str] = {}

    def shard(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write one safetensors file; its size must be header plus predicted data.

        Raises:
            InvalidArtifact: a tensor was written before, or the size is another.
        """
        twice = sorted(set(tensors) & set(self._shards))
        if twice:
            raise InvalidArtifact("a tensor is written twice", where=twice)
        ordered = {key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}
        predicted = sum(tensor.nbytes for tensor in ordered.values())
        path = self.folder / name
        try:
            save_file(ordered, path, metadata={"format": "pt"})
            with path.open("rb+") as file:
                os.fsync(file.fileno())
                (header,) = struct.unpack("<Q", file.read(8))
        except (OSError, SafetensorError) as error:
            raise _unwritable(path, error) from error
        written = path.stat().st_size - 8 - header
        if written != predicted:
            raise InvalidArtifact(f"{name} has {written} bytes, {predicted} were predicted")
        self.tensor_bytes += written
        self._shards.update(dict.fromkeys(ordered, name))

    def file(self, name: str, data: bytes) -> None:
        """Write one file and sync it. Raises ``QdcError`` if the disk does not take it."""
        try:
            with (self.folder / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.folder / name, error) from error

    def json(self, name: str, data: object) -> None:
        """Write one JSON file, keys in their order."""
        self.file(name, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())

    def index(self) -> None:
        """Write the index that says which shard holds which tensor."""
        self.json(
            "model.safetensors.index.json",
            {
                "metadata": {"total_size": self.tensor_bytes},
                "weight_map": dict(sorted(self._shards.items())),
            },
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all files so far."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def commit(self) -> None:
        """Put the folder in its place; an older artifact there is replaced as a whole.

        Raises:
            OutputExists: something else has come there in the meantime.
            QdcError: the file system refuses; what was there is there again.
        """
        check_target(self.out, force=self.force)
        _sync(self.folder)
        try:
            self.folder.chmod(0o755)
            old = self._set_aside() if self.out.exists() else None
            try:
                self.folder.rename(self.out)
            except OSError:
                if old is not None:
                    old.rename(self.out)
                raise
        except OSError as error:
            raise _unwritable(self.out, error) from error
        _sync(self.out.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def _set_aside(self) -> Path:
        old = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.old.", dir=self.out.parent))
        self.out.rename(old)
        return old

    def abort(self) -> None:
        """Remove everything that was written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def check_target(out: Path, *, force: bool) -> None:
    """Refuse a target that holds something or cannot be looked at. Raises ``QdcError``."""
    try:
        _check_target(out, force=force)
    except OSError as error:
        raise _unwritable(out, error) from error


def _check_target(out: Path, *, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise OutputExists(f"{out} is there and is no folder", help="choose another -o")
    if not any(out.iterdir()):
        return
    if not _is_artifact(out):
        raise OutputExists(
            f"{out} is there and is no qdc artifact" + ("; --force does not replace it" * force),
            help="choose another -o, or remove the folder yourself",
        )
    if not force:
        raise OutputExists(
            f"{out} is there already", help="choose another -o, or replace it with --force"
        )


def _unwritable(path: Path, error: Exception) -> QdcError:
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    return QdcError(f"cannot write to {path}: {reason}", help="choose another -o")


def _is_artifact(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return bool(config["quantization_config"]["quant_method"] == METHOD)
    return False


def _sync(folder: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
