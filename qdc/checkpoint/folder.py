"""A checkpoint folder: configuration, tensor headers, and tensors read one at a time."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from qdc.checkpoint.elsewhere import no_folder, refuse_cache
from qdc.checkpoint.layout import INDEX, locate, not_readable, open_tensors
from qdc.disk import LARGEST_JSON, LARGEST_TOKENIZER
from qdc.errors import InvalidCheckpoint, nearest
from qdc.ir.parts import Part
from qdc.ir.types import Parameter
from qdc.jsontext import TOKENIZER_BOUNDS, UnfitJson, parse_json
from qdc.modelfiles import read_inside
from qdc.numerics.finite import is_finite
from qdc.units import Progress

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
BYTE_PAIR_FILES = ("vocab.json", "merges.txt")
"""What some checkpoints have in the place of ``tokenizer.json``."""
SAFETENSORS_DTYPES = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16",
    "I64": "i64", "I32": "i32", "I16": "i16", "I8": "i8", "U8": "u8", "BOOL": "bool",
}  # fmt: skip


class Checkpoint:
    """Lazy view of a folder with ``config.json`` and safetensors; headers are read at once."""

    extra: Mapping[str, Tensor] = MappingProxyType({})
    """Tensors that no layer reads by name and an artifact takes along: buffers of a module."""

    def __init__(self, folder: Path) -> None:
        """Read configuration and headers. Raises ``InvalidCheckpoint`` naming the file at fault."""
        self.folder = folder
        if not folder.is_dir():
            raise no_folder(folder)
        refuse_cache(folder)
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self._files = self._locate()
        self.headers: dict[str, Parameter] = {}
        """Every tensor by name, with dtype and shape."""
        self.left_out: dict[str, tuple[Parameter, str]] = {}
        """Tensors that the model has no use for, each with the reason."""
        self.unused_fields = ""
        """Fields of the configuration that nothing here knows, in words; empty if there is none."""
        self.assumed_fields = ""
        """What the configuration leaves to published code, in words; empty if there is nothing."""
        self._keys: dict[str, Part] = {}
        self._twins: dict[str, str] = {}
        for file in self.files:
            self._read_headers(file)
        unknown = sorted(set(self.headers) - set(self._files))
        if unknown:
            raise InvalidCheckpoint("the shards hold tensors that the index lacks", where=unknown)
        missing = sorted(set(self._files) - set(self.headers))
        if missing:
            raise InvalidCheckpoint(
                "the index names tensors that its shards do not hold", where=missing
            )

    def __contains__(self, name: object) -> bool:
        """Whether the checkpoint has a tensor of this name."""
        return name in self.headers

    def rename(
        self,
        names: Mapping[str, str | Part],
        left_out: Mapping[str, str],
        twins: Mapping[str, str],
    ) -> None:
        """Show tensors under the names of the model, from now on.

        Args:
            names: every name of the model, and the key in the files, or the part of a tensor there.
            left_out: keys of tensors that are not read, and why.
            twins: those of them that must equal another tensor, by its name of the model.
        """
        headers = dict(self.headers)
        self.left_out = {key: (headers[key], reason) for key, reason in left_out.items()}
        self._keys = {n: Part(k) if isinstance(k, str) else k for n, k in names.items()}
        self.headers = {
            name: headers[part.key].model_copy(
                update={"name": name, "shape": part.shape(headers[part.key].shape)}
            )
            for name, part in self._keys.items()
        }
        self._twins = dict(twins)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in the checkpoint's dtype. Raises ``InvalidCheckpoint``."""
        if name not in self.headers:
            raise InvalidCheckpoint(
                f"the checkpoint has no tensor {name!r}", help=nearest(name, self.headers)
            )
        return self._read(self._keys.get(name, Part(name)))

    def _read(self, part: Part) -> Tensor:
        path, key = self._files[part.key], part.key
        with open_tensors(path) as file:
            try:
                found: Tensor = file.get_slice(key)[part.cut] if part.cut else file.get_tensor(key)
            except SafetensorError as error:
                raise InvalidCheckpoint(
                    f"tensor {key} is gone: the file has changed meanwhile", where=[str(path)]
                ) from error
            return found

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._files[self._keys.get(name, Part(name)).key]

    @property
    def files(self) -> list[Path]:
        """All files with tensors."""
        return sorted(set(self._files.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of all files with tensors."""
        return sum(file.stat().st_size for file in self.files)

    def tokenizer_files(self) -> Iterator[Path]:
        """Files beside the weights that an artifact takes along."""
        whole = (self.folder / TOKENIZER_FILES[0]).is_file()
        names = TOKENIZER_FILES if whole else (*BYTE_PAIR_FILES, *TOKENIZER_FILES)
        return (self.folder / name for name in names if (self.folder / name).is_file())

    def tokenizer_bytes(self) -> Iterator[tuple[str, bytes]]:
        """Names and contents of these files.

        Raises:
            InvalidCheckpoint: one cannot be read, is too large, leads out of the folder, or is not
                what its name says: JSON, or text in UTF-8.
        """
        for path in self.tokenizer_files():
            try:
                data = read_inside(path, LARGEST_TOKENIZER)
                _check_text(path.name, data)
            except OSError as error:
                raise not_readable(path, error) from error
            except UnfitJson as error:
                raise InvalidCheckpoint(
                    f"{path.name} {error}", where=[str(path)], help="fetch it again"
                ) from error
            except ValueError as error:
                what = "JSON" if path.suffix == ".json" else "text in UTF-8"
                raise InvalidCheckpoint(
                    f"{path.name} is no {what}", where=[str(path)], help="copy the file again"
                ) from error
            yield path.name, data

    def tokenizer_digests(self) -> dict[str, str]:
        """SHA-256 of each of these files, by name. Raises ``InvalidCheckpoint``."""
        return {name: hashlib.sha256(data).hexdigest() for name, data in self.tokenizer_bytes()}

    def scan(self, progress: Progress | None = None) -> str:
        """Read every tensor once: digest of the whole checkpoint.

        Raises:
            InvalidCheckpoint: some tensors hold NaN or infinity, or tied ones differ; all are
                named.
        """
        whole = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        broken = []
        for done, name in enumerate(sorted(self.headers)):
            tensor = self.tensor(name)
            if not is_finite(tensor):
                broken.append(name)
            header = self.headers[name]
            whole.update(f"{name} {header}".encode())
            whole.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            if progress is not None:
                progress(done + 1, len(self.headers))
        refuse_broken(broken)
        self.check_twins()
        return whole.hexdigest()

    def check_twins(self) -> None:
        """Compare tensors that the model ties. Raises ``InvalidCheckpoint``, naming all pairs."""
        apart = [
            f"{key}, {name}"
            for key, name in self._twins.items()
            if not torch.equal(self._read(Part(key)), self.tensor(name))
        ]
        if apart:
            raise InvalidCheckpoint(
                "tensors that the model ties are not equal in the checkpoint",
                where=apart,
                help="write tie_word_embeddings = false to config.json if they are two",
            )

    def _locate(self) -> dict[str, Path]:
        index = self.folder / INDEX
        if not index.is_file():
            return locate(self.folder, None)
        weights = read_json(index).get("weight_map")
        if not isinstance(weights, dict) or not weights:
            raise InvalidCheckpoint("the index has no weight_map", where=[str(index)])
        return locate(self.folder, weights)

    def _read_headers(self, path: Path) -> None:
        with open_tensors(path) as file:
            for name in file.keys():  # noqa: SIM118
                view = file.get_slice(name)
                dtype = SAFETENSORS_DTYPES.get(view.get_dtype())
                if dtype is None:
                    raise _unknown_dtype(name, view.get_dtype(), path)
                if self._files.get(name, path) == path:
                    self.headers[name] = self._header(name, dtype, view.get_shape(), path)

    @staticmethod
    def _header(name: str, dtype: str, shape: list[int], path: Path) -> Parameter:
        try:
            return Parameter(name=name, dtype=dtype, shape=tuple(shape))
        except ValidationError as error:
            raise InvalidCheckpoint(
                f"tensor {name!r} has an odd name or shape: {shape}", where=[str(path)]
            ) from error


def refuse_broken(names: Sequence[str]) -> None:
    """Raise ``InvalidCheckpoint`` if tensors hold NaN or infinity, naming all."""
    if names:
        raise InvalidCheckpoint(
            f"{len(names)} {'tensors hold' if len(names) > 1 else 'tensor holds'} NaN or infinity",
            where=names,
            help="the checkpoint is damaged or diverged in training: fetch or convert it again",
        )


def _unknown_dtype(name: str, dtype: str, path: Path) -> InvalidCheckpoint:
    """The error for a dtype that is no dtype of weights here."""
    narrow = dtype.startswith(("F8", "F4", "F6"))
    return InvalidCheckpoint(
        f"tensor {name} has dtype {dtype}" + (": the checkpoint is quantized already" * narrow),
        where=[str(path)],
        help="give the bf16, f16 or f32 checkpoint that it was made from, or decode it to one: a "
        "cast alone leaves its scales out"
        if narrow
        else f"known: {', '.join(SAFETENSORS_DTYPES)}",
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ``InvalidCheckpoint``, naming the file."""
    try:
        data = parse_json(read_inside(path, LARGEST_JSON))
    except OSError as error:
        if not path.parent.exists():
            raise no_folder(path.parent) from error
        refuse_cache(path.parent)
        raise not_readable(path, error) from error
    except UnfitJson as error:
        raise InvalidCheckpoint(
            f"{path.name} {error}", where=[str(path)], help="fetch it again"
        ) from error
    except ValueError as error:
        raise InvalidCheckpoint(
            f"{path.name} is no JSON", where=[str(path)], help="fetch it again"
        ) from error
    if not isinstance(data, dict):
        raise InvalidCheckpoint(
            f"{path.name} holds no object", where=[str(path)], help="fetch it again"
        )
    return data


def _check_text(name: str, data: bytes) -> None:
    """Refuse what is no JSON, or no text, where the name says that it is. Raises ValueError."""
    if name.endswith(".json"):
        parse_json(data, TOKENIZER_BOUNDS)
    else:
        data.decode("utf-8")
