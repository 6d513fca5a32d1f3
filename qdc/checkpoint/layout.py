"""Which files of a folder hold the tensors: one file, or the shards that an index names."""

import os
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from qdc.checkpoint.elsewhere import how_to_convert
from qdc.disk import LARGEST_JSON, LFS, POINTER
from qdc.errors import InvalidCheckpoint
from qdc.jsontext import UnfitJson, check_size
from qdc.modelfiles import COPY, OUTSIDE, pinned

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.msgpack", "*.h5")


def locate(folder: Path, weights: dict[str, Any] | None) -> dict[str, Path]:
    """Find the file of every tensor.

    Args:
        folder: holds the files.
        weights: ``weight_map`` of the index, None without an index.

    Returns:
        Names of tensors, and paths. Where all shards of an index are gone and a single file is
        there, it counts, as for transformers.

    Raises:
        InvalidCheckpoint: there are none, some are missing or lie elsewhere, or a single file and
            shards hold different tensors.
    """
    single = folder / SINGLE
    alone = single.is_file()
    if weights is None:
        if not alone:
            raise _without_weights(folder)
        return tensors_of(single)
    names = {str(shard) for shard in weights.values()}
    unsafe = sorted(n for n in names if Path(n).name != n or not n.endswith(".safetensors"))
    if unsafe:
        raise InvalidCheckpoint("the index names files outside its folder", where=unsafe)
    gone = sorted(n for n in names if not os.path.isfile(folder / n))  # noqa: PTH113
    if gone and len(gone) == len(names) and alone:
        return tensors_of(single)
    if gone:
        raise InvalidCheckpoint(
            "the index names shards that are missing",
            where=gone,
            help=f"fetch them again, or remove {INDEX} if {SINGLE} is the model"
            if alone
            else "fetch them again",
        )
    found = {str(tensor): folder / str(shard) for tensor, shard in weights.items()}
    if alone and SINGLE not in names:
        _compare(single, found)
    return found


def tensors_of(path: Path) -> dict[str, Path]:
    """Every tensor of one file, with the file. Raises ``InvalidCheckpoint``."""
    with open_tensors(path) as file:
        return dict.fromkeys(file.keys(), path)


def open_tensors(path: Path) -> Any:
    """Open a safetensors file. Raises ``InvalidCheckpoint``, saying what is wrong with it."""
    try:
        with pinned(path) as (name, handle):
            _check_header(handle)
            return safe_open(name, framework="pt")
    except SafetensorError as error:
        raise _unreadable(path) from error
    except UnfitJson as error:
        raise InvalidCheckpoint(f"the header of {path.name} {error}", where=[str(path)]) from error
    except OSError as error:
        raise not_readable(path, error) from error
    except MemoryError as error:
        raise InvalidCheckpoint(
            "the file is larger than this process may map into memory", where=[str(path)]
        ) from error


def _check_header(handle: int) -> None:
    """Look at the header of an open file before its library does. Raises ``UnfitJson``."""
    (size,) = struct.unpack("<Q", os.pread(handle, 8, 0).ljust(8, b"\0"))
    if size > LARGEST_JSON:
        room = os.fstat(handle).st_size
        if size <= room:  # else it is no header, which the library says
            raise UnfitJson(f"is larger than {LARGEST_JSON >> 20} MiB")
        return
    check_size(os.pread(handle, size, 8))


def read_beginning(path: Path) -> bytes:
    """The first bytes of a file, as many as ``LFS`` has. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(LFS))


def not_readable(path: Path, error: OSError) -> InvalidCheckpoint:
    """The error for a file that the system does not give, which says nothing of what is in it."""
    help = "give the folder of a model or an artifact"
    if isinstance(error, PermissionError):
        help = "let this user read it (chmod, chown), or copy the folder"
    elif error.strerror == OUTSIDE:
        help = COPY
    return InvalidCheckpoint(
        f"cannot read {path.name}: {(error.strerror or 'unknown reason').lower()}",
        where=[str(path)],
        help=help,
    )


def _unreadable(path: Path) -> InvalidCheckpoint:
    """Why a file is no safetensors file: what it begins with, or that nobody may read it."""
    try:
        beginning = read_beginning(path)
    except OSError as error:
        return not_readable(path, error)
    if beginning == LFS:
        return InvalidCheckpoint(f"cannot read {path.name}: {POINTER}", where=[str(path)])
    return InvalidCheckpoint(
        "the file is no safetensors file, or is cut short", where=[str(path)], help="fetch it again"
    )


def _without_weights(folder: Path) -> InvalidCheckpoint:
    others = sorted({path.name for kind in OTHER_FORMATS for path in folder.glob(kind)})
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards:
        return InvalidCheckpoint(
            f"the folder holds neither {SINGLE} nor {INDEX}",
            where=[str(folder / name) for name in shards],
            help=f"fetch {INDEX} too if these are shards; a single file is called {SINGLE}",
        )
    return InvalidCheckpoint(
        f"the folder holds neither {SINGLE} nor {INDEX}",
        where=[str(folder), *others],
        help=how_to_convert(folder, others),
    )


def _compare(single: Path, shards: dict[str, Path]) -> None:
    """Refuse two layouts that differ: readers would take the one or the other."""
    alone = tensors_of(single)
    differing = sorted(set(alone) ^ set(shards))
    if not differing:
        differing = sorted(
            name for name, shard in shards.items() if not _equal(name, single, shard)
        )
    if differing:
        raise InvalidCheckpoint(
            f"{SINGLE} and the shards of {INDEX} hold different tensors",
            where=differing,
            help=f"remove the older of the two: {SINGLE}, or {INDEX} with its shards; transformers "
            f"reads {SINGLE}",
        )


def _equal(name: str, single: Path, shard: Path) -> bool:
    """Whether both files hold the same dtype, shape and bytes under a name."""
    with open_tensors(single) as one, open_tensors(shard) as other:
        if name not in other.keys():  # noqa: SIM118
            return True  # the index is wrong about it, which is said where headers are read
        ours, theirs = one.get_tensor(name), other.get_tensor(name)
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (ours, theirs)))
