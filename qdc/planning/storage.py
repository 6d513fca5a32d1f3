"""Bytes of the files that a compile will write, from names, dtypes and shapes."""

import json
from collections.abc import Iterable, Mapping

from qdc.checkpoint.folder import SAFETENSORS_DTYPES
from qdc.ir.activations import InputCodes
from qdc.ir.keys import WEIGHT, file_key
from qdc.ir.types import BYTES, ValueType
from qdc.planning.outlook import ShardSize
from qdc.streaming.account import Account

NAMES = {short: long for long, short in SAFETENSORS_DTYPES.items()}
PLACES = ("bool", "u8", "i8", "i16", "f16", "bf16", "i32", "f32", "f64", "i64")
"""Dtypes from narrow to wide, as safetensors sorts them: wide tensors come first in a file."""
ALIGNMENT, LENGTH_FIELD = 8, 8


def shards(account: Account, layout: Mapping[str, tuple[str, ...]]) -> list[ShardSize]:
    """Every file of a layout, once all passes have been asked.

    A layer whose pass does not say how it stores it is left out; the caller says so.
    """
    found = []
    for name, nodes in layout.items():
        kinds = dict(stored(account, nodes))
        data = sum(nbytes(kind) for kind in kinds.values())
        written = LENGTH_FIELD + header_bytes(kinds) + data
        found.append(ShardSize(name=name, tensor_bytes=data, file_bytes=written))
    return found


def stored(account: Account, nodes: Iterable[str]) -> Iterable[tuple[str, ValueType]]:
    """Tensors of these nodes under the names that they will have."""
    graph = account.program.graph
    for name in nodes:
        node, codec = graph[name], account.codecs.get(name)
        if codec is not None:
            for suffix, kind in codec.specification().items():
                yield file_key(node.path, suffix), kind
        codes = graph.get(name, InputCodes)
        if codes is not None:
            for suffix, kind in codes.form.specification(node.columns).items():
                yield file_key(node.path, suffix), kind
        for parameter in node.parameters:
            if name not in account.codecs or parameter.role != WEIGHT:
                yield parameter.name, ValueType(dtype=parameter.dtype, shape=parameter.shape)


def nbytes(kind: ValueType) -> int:
    """Bytes of a stored tensor."""
    return kind.elements({}) * BYTES[kind.dtype]


def header_bytes(tensors: Mapping[str, ValueType]) -> int:
    """Bytes of the header of a safetensors file with these tensors, its length field aside."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    order = sorted(tensors, key=lambda name: (-PLACES.index(tensors[name].dtype), name))
    for name in order:
        kind = tensors[name]
        end = place + nbytes(kind)
        header[name] = {
            "dtype": NAMES[kind.dtype],
            "shape": list(kind.shape),
            "data_offsets": [place, end],
        }
        place = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return -(-len(text) // ALIGNMENT) * ALIGNMENT
