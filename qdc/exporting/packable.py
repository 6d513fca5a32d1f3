"""What an artifact must be so that ``compressed-tensors`` can pack it, and engines read it.

What cannot be packed is refused before anything is written, every guilty layer named.
"""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from qdc.errors import InvalidArtifact, QdcError
from qdc.format.codec import Codec
from qdc.format.uniformgrid import UniformGrid
from qdc.format.weights import Weights
from qdc.ir.keys import file_key
from qdc.numerics.uniform import unpack_codes

BITS, GROUPS = (2, 4, 8), (32, 64, 128)
"""What engines have products for; the library itself takes any."""
FORMAT = "pack-quantized"
WORD = 32
COMPILE = "compile with --passes engine (2 bits) or engine-4bit, whose layers are of that form"


def in_blocks(path: str) -> bool:
    """Whether a layer is one of a block: embedding and head, which engines keep, are in none."""
    return any(part.isdigit() for part in path.split("."))


def packed_layers(
    codecs: Mapping[str, Codec], rotated: Collection[str] = ()
) -> dict[str, UniformGrid]:
    """The layers of the blocks, if they can all be packed alike. Raises ``QdcError``.

    Args:
        codecs: of the layers, by full path.
        rotated: paths of those whose inputs are rotated: integers have no other coordinates.
    """
    if not codecs:
        raise QdcError("no layer of a block is quantized: there is nothing to pack", help=COMPILE)
    found = {path: codec for path, codec in codecs.items() if isinstance(codec, UniformGrid)}
    wrong = {path: f"codec {c.name}" for path, c in codecs.items() if path not in found}
    wrong |= {path: reason for path, codec in found.items() if (reason := _unfit(codec))}
    wrong |= {path: "it rotates what it reads" for path in codecs if path in rotated}
    if wrong:
        raise QdcError(
            f"{len(wrong)} of {len(codecs)} layers cannot be packed as {FORMAT} integers",
            where=[f"{path}: {reason}" for path, reason in wrong.items()],
            help=COMPILE,
        )
    forms = {(codec.bits, codec.group) for codec in found.values()}
    if len(forms) > 1:
        raise QdcError(
            "engines fuse layers of a block, and read one form for all: "
            + ", ".join(f"{bits} bits in groups of {group}" for bits, group in sorted(forms)),
            where=[f"{p}: {c.bits} bits in groups of {c.group}" for p, c in found.items()],
            help=COMPILE,
        )
    return found


def _unfit(codec: UniformGrid) -> str:
    """Why one layer cannot be packed; empty if it can."""
    if codec.zero != "packed":
        return "minima in fp16, where the format has zero points that are codes (zero=packed)"
    if codec.bits not in BITS:
        return f"{codec.bits} bits, of {', '.join(map(str, BITS))}"
    if codec.group not in GROUPS:
        return f"groups of {codec.group}, of {', '.join(map(str, GROUPS))}"
    if codec.columns % codec.group:
        return f"{codec.columns} columns are no whole groups of {codec.group}"
    return ""


def refuse_broken_words(layers: Mapping[str, UniformGrid]) -> None:
    """Engines read zero points of rows by whole words. Raises ``QdcError``."""
    wrong = [p for p, codec in layers.items() if codec.rows * codec.bits % WORD]
    if wrong:
        raise QdcError(
            f"zero points of {len(wrong)} layers do not fill words of {WORD} bits",
            where=[f"{path}: {layers[path].rows} rows" for path in wrong],
            help=COMPILE + ", and need no zero points",
        )


def refuse_torn(whole: Mapping[str, str], packed: Collection[str]) -> None:
    """Layers that are one tensor for others are packed together or not. Raises ``QdcError``."""
    torn = {whole[path] for path in whole if path in packed} & {
        whole[path] for path in whole if path not in packed
    }
    if torn:
        raise QdcError(
            f"{len(torn)} tensors of the published names would be packed in part",
            where=[f"{path}: {whole[path]}" for path in whole
                   if whole[path] in torn and path not in packed],
            help="compile without leaving out one of q, k and v, or export with --format dense",
        )  # fmt: skip


def refuse_stacks(layers: Collection[str]) -> None:
    """Refuse experts that the class in transformers has stacked. Raises ``QdcError``."""
    if layers:
        raise QdcError(
            f"{len(layers)} layers are experts that the model's own class reads as one tensor of "
            "three axes, which this format cannot pack",
            where=sorted(layers),
            help="export with --format dense, or keep the artifact and load it with qdc.load",
        )


def is_central(weights: Weights, layer: str, codec: UniformGrid) -> bool:
    """Whether every zero point that says something is one of the two codes next to the middle."""
    zero = unpack_codes(weights.plain(file_key(layer, "zero")), codec.bits, codec.groups)
    scale, middle = weights.plain(file_key(layer, "scale")), 1 << (codec.bits - 1)
    return bool(((zero == middle) | (zero == middle - 1) | (scale == 0)).all())


def scales_dtype(weights: Weights, layers: Iterable[str], asked: str | None) -> str:
    """The dtype that holds every scale as it is. Raises ``InvalidArtifact``."""
    rounded = [
        layer
        for layer in layers
        if not _holds(weights.plain(file_key(layer, "scale")), torch.bfloat16)
    ]
    if asked == "bf16" and rounded:
        raise InvalidArtifact(
            f"scales of {len(rounded)} layers are no numbers of bf16",
            where=rounded,
            help="export with --dtype f16, or compile with --passes engine, whose scales are both",
        )
    return asked or ("f16" if rounded else "bf16")


def _holds(scale: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(scale.to(dtype).float(), scale.float())
