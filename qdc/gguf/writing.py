"""Write a model as one GGUF file, a tensor at a time: blocks as they are stored, or decoded."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidArtifact, UnsupportedModel
from qdc.format.codec import Codec
from qdc.format.ggml import Ggml
from qdc.format.weights import Weights
from qdc.gguf.keys import write_keys
from qdc.gguf.names import Naming, Place
from qdc.gguf.package import gguf_package
from qdc.gguf.vocabulary import Vocabulary
from qdc.ir.keys import file_key, layer_of
from qdc.ir.types import ValueType
from qdc.numerics.finite import is_finite
from qdc.stopping import check

Decoded = Literal["F16", "Q8_0"]
TYPE_NUMBERS = {"F32": 0, "F16": 1, "Q8_0": 8}
FILE_TYPES = {
    "F16": 1, "Q8_0": 7, "Q2_K": 10, "Q3_K": 11, "Q6_K": 18, "TQ2_0": 37, "Q1_0": 40, "Q2_0": 41,
}  # fmt: skip
"""What a file is called whose weights are mostly of a type."""
Q8_COLUMNS, Q8_BYTES = 32, 34


@dataclass(frozen=True)
class Entry:
    """One tensor of the file."""

    name: str
    sources: tuple[tuple[str, Place], ...]
    """The parameter that it is made of, or one for each expert."""
    shape: tuple[int, ...]
    type: str
    number: int
    """Of the type."""
    nbytes: int


@dataclass
class Written:
    """What stands in a file."""

    tensors: int = 0
    nbytes: int = 0
    """Of the tensors, without padding."""
    types: dict[str, int] = field(default_factory=dict)
    """Weights of each type."""
    decoded: list[str] = field(default_factory=list)
    """Quantized layers whose codec is none of ggml's, and which stand decoded in the file."""


def write_gguf(
    path: Path,
    model: Naming,
    source: Checkpoint,
    weights: Weights,
    vocabulary: Vocabulary,
    *,
    name: str,
    dense: Decoded = "F16",
) -> Written:
    """Write the file.

    Args:
        path: of the file; its folder exists.
        model: names and sizes.
        source: headers of all stored tensors.
        weights: the tensors.
        vocabulary: the tokenizer.
        name: what the file calls the model.
        dense: type of the matrices that are not stored in blocks of ggml.

    Raises:
        UnsupportedModel: there are biases that llama.cpp does not know, or rotated blocks.
        InvalidArtifact: a tensor has no place in the file, or values do not fit fp16.
        QdcError: the package gguf is missing.
    """
    package = gguf_package()
    refuse_rotated_blocks(weights.codecs, weights.rotated)
    entries = list(_entries(model, source.headers, weights.codecs, dense))
    written = Written(tensors=len(entries), nbytes=sum(entry.nbytes for entry in entries))
    for entry in entries:
        count = int(np.prod(entry.shape))
        written.types[entry.type] = written.types.get(entry.type, 0) + count
    layers = (layer_of(key) for entry in entries for key, _ in entry.sources)
    codecs = weights.codecs
    written.decoded = [each for each in layers
                       if each in codecs and not isinstance(codecs[each], Ggml)]  # fmt: skip
    writer = package.GGUFWriter(str(path), model.architecture)
    try:
        _write_head(writer, model, vocabulary, name, entries)
        for entry in entries:
            check()
            data = _data(package, entry, weights)
            writer.write_tensor_data(data)
    finally:
        writer.close()
    return written


def refuse_rotated_blocks(codecs: Mapping[str, Codec], rotated: Iterable[str]) -> None:
    """Refuse blocks of ggml whose layers rotate what they read. Raises ``UnsupportedModel``.

    A rotation is multiplied out of a decoded weight; blocks have none.
    """
    blocks = sorted(path for path in rotated if isinstance(codecs.get(path), Ggml))
    if blocks:
        raise UnsupportedModel(
            "llama.cpp rotates no inputs, and blocks of ggml cannot have a rotation multiplied out",
            where=blocks,
            help="compile without rotate",
        )


def file_bytes(
    model: Naming,
    stored: Mapping[str, ValueType],
    codecs: Mapping[str, Codec],
    vocabulary: Vocabulary,
    *,
    name: str,
    dense: Decoded = "F16",
) -> tuple[int, int]:
    """Bytes of the file that ``write_gguf`` would write, and of its tensors without padding.

    Arguments and errors are those of ``write_gguf``; of the tensors the headers are enough.
    """
    package = gguf_package()
    entries = list(_entries(model, stored, codecs, dense))
    with tempfile.TemporaryDirectory(prefix="qdc-gguf-") as folder:
        path = Path(folder) / "head.gguf"
        writer = package.GGUFWriter(str(path), model.architecture)
        try:
            _write_head(writer, model, vocabulary, name, entries)
        finally:
            writer.close()
        head = path.stat().st_size
    # Each tensor begins and ends where the alignment has a multiple.
    alignment = int(package.GGUF_DEFAULT_ALIGNMENT)
    padded = (-(-entry.nbytes // alignment) * alignment for entry in entries)
    whole = -(-head // alignment) * alignment + sum(padded)
    return whole, sum(entry.nbytes for entry in entries)


def _write_head(
    writer: Any, model: Naming, vocabulary: Vocabulary, name: str, entries: Sequence[Entry]
) -> None:
    """Write all that stands before the tensors' data."""
    types: dict[str, int] = {}
    for entry in entries:
        types[entry.type] = types.get(entry.type, 0) + int(np.prod(entry.shape))
    inside = {entry.type: 0 for entry in entries if entry.name.startswith("blk.")}
    most = max(inside, key=lambda kind: types[kind] * (kind != "F32"))
    write_keys(writer, model, name, FILE_TYPES[most])
    vocabulary.write(writer)
    for entry in entries:
        # A dtype that is not u8 says that the shape is that of the weights.
        writer.add_tensor_info(
            entry.name, entry.shape, np.dtype(np.float32), entry.nbytes, entry.number
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _entries(
    model: Naming, stored: Mapping[str, ValueType], codecs: Mapping[str, Codec], dense: Decoded
) -> Iterator[Entry]:
    """Every tensor of the file, in the order of the model.

    Raises:
        InvalidArtifact: a stored tensor is none of them.
    """
    found: dict[str, list[tuple[str, Place]]] = {}
    known: set[str] = set()
    for path, place in model.places.items():
        codec = codecs.get(path)
        for role in ("weight", "bias"):
            key = file_key(path, role)
            if key in stored or (codec is not None and role == "weight"):
                found.setdefault(f"{place.name}.{role}", []).append((key, place))
                known.add(key)
        known |= {file_key(path, suffix) for suffix in codec.specification()} if codec else set()
    without = sorted(set(stored) - known)
    if without:
        raise InvalidArtifact("tensors have no place in a GGUF file", where=without)
    biased = {getattr(model.family.names, role) for role in model.family.biases}
    added = [
        key
        for parts in found.values()
        for key, _ in parts
        if key.endswith(".bias") and not key.endswith(tuple(f"{name}.bias" for name in biased))
    ]
    if added:
        raise UnsupportedModel(
            f"llama.cpp's graph for {model.architecture} has no such biases",
            where=added,
            help="compile without the pass that adds them",
        )
    for name, parts in found.items():
        yield _entry(name, parts, stored, codecs, dense)


def _entry(
    name: str,
    parts: list[tuple[str, Place]],
    stored: Mapping[str, ValueType],
    codecs: Mapping[str, Codec],
    dense: Decoded,
) -> Entry:
    key, place = parts[0]
    codec = codecs.get(layer_of(key))
    shape = (codec.rows, codec.columns) if codec else tuple(map(int, stored[key].shape))
    if place.expert is not None:
        shape = (len(parts), *shape)
    kinds = {
        codec.type if isinstance(codec, Ggml) else ""
        for codec in (codecs.get(layer_of(each)) for each, _ in parts)
    }
    if len(kinds) > 1:
        raise InvalidArtifact(
            "experts of one block are stored in different types, and a file holds them as one",
            where=[each for each, _ in parts],
        )
    count = int(np.prod(shape))
    if isinstance(codec, Ggml):
        kind = codec.block_type
        nbytes = count // kind.width * kind.nbytes
        return Entry(name, tuple(parts), shape, kind.name, kind.number, nbytes)
    if len(shape) == 1 or place.role == "ffn_gate_inp":
        return Entry(name, tuple(parts), shape, "F32", TYPE_NUMBERS["F32"], 4 * count)
    if dense == "F16" or shape[-1] % Q8_COLUMNS:
        return Entry(name, tuple(parts), shape, "F16", TYPE_NUMBERS["F16"], 2 * count)
    nbytes = count // Q8_COLUMNS * Q8_BYTES
    return Entry(name, tuple(parts), shape, "Q8_0", TYPE_NUMBERS["Q8_0"], nbytes)


def _data(package: Any, entry: Entry, weights: Weights) -> np.ndarray[Any, Any]:
    """The bytes of one tensor, experts behind each other."""
    parts = [_part(package, entry, key, place, weights) for key, place in entry.sources]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _part(
    package: Any, entry: Entry, key: str, place: Place, weights: Weights
) -> np.ndarray[Any, Any]:
    layer = layer_of(key)
    if isinstance(weights.codecs.get(layer), Ggml) and key == file_key(layer):
        rows = place.reordered(weights.stored(layer)["blocks"])
        return _flat(rows)
    tensor = place.reordered(weights.unrotated(key).float())
    if entry.type == "F32":
        return _flat(tensor)
    if entry.type == "F16":
        half = tensor.half()
        if not is_finite(half):
            raise InvalidArtifact("values of a tensor do not fit fp16", where=[key])
        return _flat(half)
    kind = package.GGMLQuantizationType.Q8_0
    quantized: np.ndarray[Any, Any] = package.quants.quantize(tensor.numpy(), kind)
    return quantized.reshape(-1)


def _flat(tensor: Tensor) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return found
