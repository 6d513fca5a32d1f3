"""Write an artifact folder atomically: everything goes to a temporary folder first.

Files are synced to disk, then the folder takes its place (``commit``). A failed compile leaves what
was there before.
A folder that is given may hold finished shards of an interrupted compile: ``adopt`` takes them in.
"""

import contextlib
import json
import shutil
import struct
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from qdc.artifact.commit import (
    SingleFile,
    discard,
    put_file_in_place,
    put_in_place,
    set_aside_name,
)
from qdc.artifact.digests import CARD, DIGESTS, digests_text
from qdc.checkpoint.compiled import METHOD
from qdc.checkpoint.layout import INDEX
from qdc.disk import (
    LARGEST_JSON,
    digest_of,
    open_folder,
    read_regular,
    sync_folder,
    unwritable,
    write_bytes,
    write_tensors,
)
from qdc.errors import InvalidArtifact, OutputExists
from qdc.jsontext import parse_json

CONFIG = "config.json"
DUMP = "ir.qdc"
"""The layer graph as it was compiled."""
EXPORT = "qdc-export.json"
"""In every folder that ``qdc export`` has written: what it was made from."""


class ArtifactWriter:
    """A folder in the making; ``commit`` makes it appear, ``abort`` leaves no trace."""

    def __init__(
        self,
        out: Path,
        *,
        force: bool = False,
        folder: Path | None = None,
        single: SingleFile | None = None,
    ) -> None:
        """Check the target. Raises ``QdcError`` unless it is free, empty, or may be replaced.

        Args:
            out: where the artifact will lie.
            force: whether it may replace another.
            folder: where it is made, in the same file system; one beside ``out`` if not given.
            single: the one file that will lie at ``out``, if it is not the folder.
        """
        self.out, self.force, self.single = out.absolute(), force, single
        self.tensor_bytes = 0
        """Bytes of tensor data written."""
        self.decoded = 0
        """Quantized matrices of which the file holds weights in full."""
        check_target(self.out, force=force, single=single)
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.folder = folder or Path(
                tempfile.mkdtemp(prefix=f".{self.out.name}.", dir=self.out.parent)
            )
        except OSError as error:
            raise unwritable(self.out.parent, error) from error
        self._shards: dict[str, str] = {}
        self._digests: dict[str, str] = {}

    def shard(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write one safetensors file; its size must be header plus predicted data.

        Raises:
            InvalidArtifact: a tensor was written before, or the size is another.
        """
        twice = sorted(set(tensors) & set(self._shards))
        if twice:
            raise InvalidArtifact("a tensor is written twice", where=twice)
        predicted = sum(tensor.nbytes for tensor in tensors.values())
        path = self.folder / name
        self._digests.pop(name, None)
        write_tensors(path, {key: tensors[key] for key in sorted(tensors)})
        written = _data_bytes(path)
        if written != predicted:
            raise InvalidArtifact(f"{name} has {written} bytes, {predicted} were predicted")
        self._count(name, tensors)

    def adopt(self, name: str, sha256: str) -> None:
        """Take in a file that an earlier process has written, whole. Raises ``QdcError``."""
        path = self.folder / name
        self._digests[name] = sha256
        if path.suffix != ".safetensors":
            return
        try:
            with safe_open(path, framework="pt") as file:
                self._count(name, file.keys())
        except (OSError, SafetensorError) as error:
            raise InvalidArtifact("a shard cannot be read", where=[str(path)]) from error

    def _count(self, name: str, tensors: Iterable[str]) -> None:
        self.tensor_bytes += _data_bytes(self.folder / name)
        self._shards.update(dict.fromkeys(tensors, name))

    def file(self, name: str, data: bytes) -> None:
        """Write one file and sync it. Raises ``QdcError`` if the disk does not take it."""
        self._digests.pop(name, None)
        write_bytes(self.folder / name, data)

    def json(self, name: str, data: object) -> None:
        """Write one JSON file, keys in their order."""
        self.file(name, json_bytes(data))

    def index(self) -> None:
        """Write the index that says which shard holds which tensor."""
        self.json(INDEX, index_data(self._shards, self.tensor_bytes))

    def digest(self, name: str) -> str:
        """SHA-256 of a file that is written; made once. Raises ``InvalidArtifact``."""
        if name not in self._digests:
            found = digest_of(self.folder / name)
            if not found:
                raise InvalidArtifact("a file is gone", where=[str(self.folder / name)])
            self._digests[name] = found
        return self._digests[name]

    def seal(self) -> None:
        """Write the digests of all files but the card, as the last of them. Raises ``QdcError``."""
        names = (path.name for path in self.folder.iterdir() if path.name not in (DIGESTS, CARD))
        self.file(DIGESTS, digests_text({name: self.digest(name) for name in names}))

    @property
    def nbytes(self) -> int:
        """Bytes of all files so far that will lie at ``out``."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def files(self) -> list[Path]:
        """The files so far that will lie at ``out``, by name."""
        if self.single is not None:
            return [self.folder / self.single.name]
        return sorted(self.folder.iterdir())

    def commit(self) -> None:
        """Put the folder in its place; an older artifact there is replaced as a whole.

        Raises:
            OutputExists: something else has come there in the meantime.
            QdcError: the file system refuses; what was there is there again.
        """
        check_target(self.out, force=self.force, single=self.single)
        sync_folder(self.folder)
        try:
            if self.single is not None:
                put_file_in_place(self.folder / self.single.name, self.out)
                discard(self.folder, self.out)
                return
            open_folder(self.folder)
            put_in_place(self.folder, self.out)
        except OSError as error:
            raise unwritable(self.out, error) from error
        for replaced in (self.folder, set_aside_name(self.folder)):
            discard(replaced, self.out)

    def abort(self) -> None:
        """Remove everything that was written, or that was replaced by it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def json_bytes(data: object) -> bytes:
    """JSON as it stands in an artifact's files."""
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()


def index_data(shards: Mapping[str, str], tensor_bytes: int) -> dict[str, object]:
    """What the index says: of each tensor its file, and the bytes of all."""
    return {
        "metadata": {"total_size": tensor_bytes},
        "weight_map": dict(sorted(shards.items())),
    }


def check_target(out: Path, *, force: bool, single: SingleFile | None = None) -> None:
    """Refuse a target that holds something or cannot be looked at. Raises ``QdcError``."""
    try:
        if single is not None:
            _check_file(out, single, force=force)
        else:
            _check_target(out, force=force)
    except OSError as error:
        raise unwritable(out, error) from error


def _check_file(out: Path, single: SingleFile, *, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_file() or out.is_symlink():
        raise OutputExists(f"{out} is there and is no file", help="choose another -o")
    with out.open("rb") as file:
        ours = file.read(len(single.magic)) == single.magic
    if not ours:
        raise OutputExists(
            f"{out} is there and is no {Path(single.name).suffix} file"
            + ("; --force does not replace it" * force),
            help="choose another -o, or remove the file yourself",
        )
    if not force:
        raise OutputExists(
            f"{out} is there already", help="choose another -o, or replace it with --force"
        )


def _check_target(out: Path, *, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise OutputExists(f"{out} is there and is no folder", help="choose another -o")
    if not any(out.iterdir()):
        return
    if not is_artifact(out) and not (out / EXPORT).is_file():
        raise OutputExists(
            f"{out} is there and is no qdc artifact" + ("; --force does not replace it" * force),
            help="choose another -o, or remove the folder yourself",
        )
    if not force:
        raise OutputExists(
            f"{out} is there already", help="choose another -o, or replace it with --force"
        )


def _data_bytes(path: Path) -> int:
    """Bytes of a safetensors file behind its header. Raises ``QdcError``."""
    try:
        with path.open("rb") as file:
            (header,) = struct.unpack("<Q", file.read(8))
        return path.stat().st_size - 8 - int(header)
    except (OSError, struct.error) as error:
        raise InvalidArtifact("a shard cannot be read", where=[str(path)]) from error


def is_artifact(folder: Path) -> bool:
    """Whether a folder says of itself that it is an artifact."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        config = parse_json(read_regular(folder / CONFIG, LARGEST_JSON))
        return bool(config["quantization_config"]["quant_method"] == METHOD)
    return False
