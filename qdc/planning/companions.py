"""Files of an artifact beside its tensors, with the sizes that they will have.

Everything is written as a compile would write it, with digests and errors of the same length; what
passes do not foretell of their notes in the IR dump is filled in from the codecs.
"""

from collections.abc import Iterator

from qdc.artifact.card import Figures, card_text
from qdc.artifact.digests import CARD, DIGESTS, digests_text
from qdc.artifact.writer import index_data, json_bytes
from qdc.checkpoint.layout import INDEX
from qdc.format.codec import Codec, Lowered
from qdc.ir.activations import Rotation
from qdc.ir.annotations import Packed
from qdc.ir.graph import LayerGraph, Node
from qdc.ir.keys import file_key, table_key
from qdc.ir.opaque import Opaque
from qdc.ir.types import TensorRef
from qdc.pipeline.backendbase import Backend
from qdc.pipeline.foreseen import FileSize, Foreseen
from qdc.pipeline.registry import Registry
from qdc.planning.outlook import ShardSize
from qdc.planning.storage import nbytes
from qdc.streaming.forecast import NO_DIGEST


def companions(
    backend: Backend, foreseen: Foreseen, shards: dict[str, tuple[ShardSize, list[str]]]
) -> list[FileSize]:
    """What lies beside the shards, or the one file of a backend that writes no folder.

    Args:
        backend: writes them.
        foreseen: the compiled model.
        shards: each with the names of its tensors.
    """
    beside = backend.beside(foreseen)
    if beside is None:
        return []
    if backend.single_file is not None:
        return list(beside)
    of_tensor = {tensor: name for name, (_, tensors) in shards.items() for tensor in tensors}
    data = sum(shard.tensor_bytes for shard, _ in shards.values())
    index = FileSize(INDEX, len(json_bytes(index_data(of_tensor, data))))
    named = [*shards, *(file.name for file in beside), INDEX]
    digests = FileSize(DIGESTS, len(digests_text(dict.fromkeys(named, NO_DIGEST))))
    card = FileSize(CARD, len(card_text(foreseen.checkpoint, foreseen.facts, _figures(foreseen))))
    return [*beside, index, digests, card]


def note_lowered(graph: LayerGraph, codecs: dict[str, Codec], registry: Registry) -> None:
    """Annotate layers as they will be: packed, and lowered by some pass.

    Args:
        graph: of the model; layers that carry such notes keep them.
        codecs: by the name of the node.
        registry: knows which annotation carries a codec.
    """
    kinds = [kind for kind in registry.annotations().values() if issubclass(kind, Lowered)]
    carriers = {kind.codec_class(): kind for kind in reversed(kinds)}
    for name, codec in codecs.items():
        node = graph[name]
        refs = tuple(_refs(node, codec))
        suffixes = tuple(codec.specification())
        working = [{**ref.model_dump(mode="json"), "name": table_key(name, s)}
                   for s, ref in zip(suffixes, refs, strict=True)
                   if s not in codec.packed_only]  # fmt: skip
        carrier = carriers[type(codec)]
        own = carrier.model_fields.keys() - Lowered.model_fields.keys()
        lowered = {
            **dict.fromkeys(sorted(own), 0.0),
            "codec": codec.model_dump(mode="json"),
            "tensors": working,
            "suffixes": [s for s in suffixes if s not in codec.packed_only],
            "error": 0.0,
            "block_errors": [0.0] * len(codec.column_blocks),
        }
        if graph.get(name, Lowered) is None:
            graph.annotate(name, Opaque(unknown_tag=carrier.tag, data=lowered))
        if graph.get(name, Packed) is None:
            graph.annotate(name, _packed(node, codec, refs, suffixes))


def _packed(
    node: Node, codec: Codec, refs: tuple[TensorRef, ...], suffixes: tuple[str, ...]
) -> Packed:
    return Packed(
        tensors=refs,
        suffixes=suffixes,
        payload_bits=codec.payload_bits,
        weights=node.rows * node.columns,
    )


def _refs(node: Node, codec: Codec) -> Iterator[TensorRef]:
    for suffix, kind in codec.specification().items():
        shape = tuple(map(int, kind.shape))
        name = file_key(node.path, suffix)
        yield TensorRef(name=name, dtype=kind.dtype, shape=shape, digest=NO_DIGEST)


def _figures(foreseen: Foreseen) -> Figures:
    inside = {node.path for node in foreseen.graph.layers()}
    codecs = {path: codec for path, codec in foreseen.codecs.items() if path in inside}
    weights = sum(codec.rows * codec.columns for codec in codecs.values())
    signs = all(codec.signs for codec in codecs.values())
    every = foreseen.codecs.values()
    whole = 8 * sum(c.nbytes for c in every) / max(1, sum(c.rows * c.columns for c in every))
    return Figures(
        layers=len(codecs),
        weights=weights,
        bits_word="sign bits" if signs else "code bits",
        bits=sum(codec.payload_bits for codec in codecs.values()) / max(1, weights),
        effective_bits=8 * sum(codec.nbytes for codec in codecs.values()) / max(1, weights),
        whole_bits=whole if len(every) > len(codecs) else None,
        bytes_before=foreseen.checkpoint.nbytes,
        tensor_bytes=sum(nbytes(kind) for kind in foreseen.stored.values()),
        rotated=sum(
            node.path in codecs and foreseen.graph.get(node.name, Rotation) is not None
            for node in foreseen.graph.layers()
        ),
    )
