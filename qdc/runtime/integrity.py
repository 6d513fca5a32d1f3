"""Whether an artifact is as it was written: every file, and every tensor that it holds.

Two digests are there: those of all files, in ``qdc.sha256``, and those of packed and tuned tensors,
in the IR dump. Artifacts that were written before the first came have the second alone.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from qdc.artifact.config import parse_codec, parse_quantization
from qdc.artifact.digests import CARD, DIGESTS, Digests
from qdc.artifact.writer import DUMP
from qdc.checkpoint.folder import Checkpoint
from qdc.checkpoint.held import MODULE
from qdc.errors import InvalidArtifact, QdcError
from qdc.format.codec import Codec
from qdc.ir.activations import InputCodes
from qdc.ir.annotations import Packed
from qdc.ir.dump import read
from qdc.ir.graph import LayerGraph
from qdc.ir.keys import file_key
from qdc.ir.tensors import digest
from qdc.ir.tuned import Tuned
from qdc.ir.types import Frozen, TensorRef
from qdc.numerics.finite import is_finite
from qdc.pipeline.registry import Registry
from qdc.runtime.load import compare_tensors, open_artifact
from qdc.runtime.weights import StoredWeights, Wanted
from qdc.units import StepProgress

WHOLE = "not as it was written"


class Damage(Frozen):
    """What is wrong with a file."""

    file: str
    problems: tuple[str, ...]


class Integrity(Frozen):
    """What was found of an artifact."""

    artifact: str
    files: int
    """Whose digests were compared."""
    tensors: int
    """Whose digests were compared with those that the compile has noted."""
    damaged: tuple[Damage, ...] = ()
    unverified: tuple[str, ...] = ()
    """Files without a digest."""

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong; files without a digest cannot be."""
        return not self.damaged


def examine(folder: Path, registry: Registry, progress: StepProgress) -> Integrity:
    """Read all of an artifact, and compare it with every digest there is.

    Args:
        folder: the artifact.
        registry: knows codecs, annotations and families.
        progress: called with what is done, how much of it, and the total.

    Raises:
        InvalidArtifact: there is no folder, or nothing in it that a compile would have noted.
    """
    help = "give the folder of an artifact, the OUT of qdc compile"
    if not folder.is_dir():
        raise InvalidArtifact(f"{folder} is no folder", help=help)
    if not any((folder / name).exists() for name in (DUMP, DIGESTS)):
        # As of a checkpoint: it would be called damaged, for which nobody could do anything.
        raise InvalidArtifact(f"{folder} has neither {DUMP} nor {DIGESTS}", help=help)
    found: dict[str, list[str]] = defaultdict(list)
    try:
        digests = Digests.of(folder)
    except InvalidArtifact as error:
        found[DIGESTS].append(error.what)
        digests = Digests.unread(folder)
    _compare_files(digests, found, progress)
    noted = _noted(folder, registry, found)
    tensors = _compare_tensors(folder, registry, noted, found, progress)
    listed = digests.listed or {}
    there = sorted(path.name for path in folder.iterdir() if path.name not in (DIGESTS, CARD))
    return Integrity(
        artifact=str(folder),
        files=len(listed),
        tensors=tensors,
        damaged=tuple(
            Damage(file=file, problems=tuple(dict.fromkeys(found[file]))) for file in sorted(found)
        ),
        unverified=tuple(name for name in there if name not in listed),
    )


def refuse_damaged(found: Integrity) -> None:
    """Raise ``InvalidArtifact`` unless an artifact is whole."""
    if not found.whole:
        raise InvalidArtifact(
            "the artifact is not as it was written",
            where=[f"{each.file}: {'; '.join(each.problems)}" for each in found.damaged],
            help="copy it again, or compile it again",
        )


def _compare_files(digests: Digests, found: dict[str, list[str]], progress: StepProgress) -> None:
    listed = digests.listed or {}
    for done, name in enumerate(listed):
        try:
            if digests.differs(name):
                found[name].append(WHOLE)
        except OSError as error:
            found[name].append((error.strerror or "it cannot be read").lower())
        progress("compare files", done + 1, len(listed))


def _noted(folder: Path, registry: Registry, found: dict[str, list[str]]) -> dict[str, TensorRef]:
    """The stored tensors of which the dump knows digests, by full name."""
    try:
        graph = read(folder / DUMP, registry.annotations())
    except QdcError as error:
        found[DUMP].append(error.what)
        return {}
    return dict(_stored(graph))


def _stored(graph: LayerGraph) -> Iterator[tuple[str, TensorRef]]:
    for node in graph:
        packed, tuned = graph.get(node.name, Packed), graph.get(node.name, Tuned)
        if packed is not None:
            for suffix, ref in zip(packed.suffixes, packed.tensors, strict=True):
                yield f"{node.path}.{suffix}", ref
        codes = graph.get(node.name, InputCodes)
        if codes is not None:
            for suffix, ref in zip(codes.suffixes, codes.tensors, strict=True):
                yield file_key(node.path, suffix), ref
        if tuned is not None:
            for role, ref in zip(tuned.roles, tuned.tensors, strict=True):
                yield file_key(node.path, role), ref


def _compare_tensors(
    folder: Path,
    registry: Registry,
    noted: dict[str, TensorRef],
    found: dict[str, list[str]],
    progress: StepProgress,
) -> int:
    """Compare tensors, and look at their values; returns how many had a digest."""
    try:
        weights = _open(folder, registry)
    except QdcError as error:
        places = ", ".join(error.where[:3])
        if not found:  # else the reason is known: one of the files that differ
            found["config.json"].append(f"{error.what} {places}".rstrip())
        return 0
    source, codecs = weights.source, weights.codecs
    compared = 0
    owners = {file_key(layer, suffix): layer for layer, suffix in _suffixes(codecs)}
    described = source.config.get(MODULE)
    buffers = described.get("stored", {}) if isinstance(described, dict) else {}
    for done, name in enumerate(sorted(source.headers)):
        file = source.file(name).name
        try:
            tensor = source.tensor(name)
        except QdcError as error:
            found[file].append(error.what)
            continue
        if name in noted:
            compared += 1
            if digest(tensor) != noted[name].digest:
                found[file].append(f"{name} is not the tensor that was compiled")
        # Buffers of a module may be masks, which hold infinity.
        if name not in owners and name not in buffers and not is_finite(tensor):
            found[file].append(f"{name} holds NaN or infinity")
        progress("compare tensors", done + 1, len(source.headers))
    _check_values(weights, found)
    return compared


def _open(folder: Path, registry: Registry) -> StoredWeights:
    """What is stored, checked against its model, which of a torch module nobody here can build."""
    source = Checkpoint(folder)
    quantization = parse_quantization(source.config)
    if quantization.frontend != MODULE:
        return open_artifact(folder, registry, verify=False).weights
    known = registry.codecs()
    codecs = {
        layer: parse_codec(layer, fields, known) for layer, fields in quantization.layers.items()
    }
    wanted: dict[str, Wanted] = {
        file_key(layer, suffix): (stored.dtype, stored.shape)
        for layer, codec in codecs.items()
        for suffix, stored in codec.specification().items()
    }
    there = {name: header for name, header in source.headers.items() if name in wanted}
    compare_tensors(wanted, there, InvalidArtifact)
    return StoredWeights(codecs, quantization.stages, traceable=False, source=source)


def _suffixes(codecs: Mapping[str, Codec]) -> Iterator[tuple[str, str]]:
    for layer, codec in codecs.items():
        for suffix in codec.specification():
            yield layer, suffix


def _check_values(weights: StoredWeights, found: dict[str, list[str]]) -> None:
    """Let each codec look at what it would decode."""
    for layer, codec in weights.codecs.items():
        try:
            weights.stored(layer)
        except QdcError as error:
            file = weights.source.file(_first(layer, codec)).name
            found[file].append(f"{layer}: {error.what}")


def _first(layer: str, codec: Codec) -> str:
    return file_key(layer, next(iter(codec.specification())))
