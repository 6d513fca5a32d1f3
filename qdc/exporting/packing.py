"""Uniform codes as packed integers of the library ``compressed-tensors``, which engines load.

A layer of the codec ``uniform`` whose zero points are codes is what the library calls
``pack-quantized``: W = scale * (code - zero), codes and zero points in 32-bit words, lowest bits
first. Nothing is rounded on the way but the product, to the dtype of the scales, as the library
does itself. Where every zero point is one of the two codes next to the middle of the grid the
weights are written as symmetric ones, which more engines take: -s * (code' - middle) with the codes
mirrored is the same number.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdc.artifact.config import QUANTIZATION
from qdc.errors import InvalidArtifact, QdcError
from qdc.exporting.published import published_layers, stacked_layers
from qdc.format.codec import Codec
from qdc.format.uniformgrid import UniformGrid
from qdc.format.weights import Weights
from qdc.ir.keys import file_key
from qdc.ir.tensors import torch_dtype
from qdc.numerics.uniform import unpack_codes
from qdc.runtime.load import OpenedArtifact
from qdc.version import install

BITS, GROUPS = (2, 4, 8), (32, 64, 128)
"""What engines have products for; the library itself takes any."""
FORMAT = "pack-quantized"
LINEAR = "Linear"
"""What engines look for among the targets; names of layers are not understood by all of them."""
WORD = 32
AT_ONCE = 1 << 24
"""Weights that are packed at a time: the library takes some bytes for each meanwhile."""
COMPILE = "compile with --passes engine (2 bits) or engine-4bit, whose layers are of that form"


def library() -> Any:
    """The package ``compressed_tensors``. Raises ``QdcError`` where it is not installed."""
    try:
        import compressed_tensors
        import compressed_tensors.compressors.pack_quantized
        import compressed_tensors.quantization
        import compressed_tensors.utils
    except ImportError as error:
        raise QdcError(
            "the package compressed-tensors is not installed, which writes this format",
            help=install("compressed-tensors"),
        ) from error
    return compressed_tensors


@dataclass(frozen=True)
class Packing:
    """How the linears of one artifact are written: all of them alike."""

    bits: int
    group: int
    symmetric: bool
    layers: Mapping[str, UniformGrid]
    """Those that are packed, by full path."""
    ignored: tuple[str, ...]
    """Full paths of the linears that are not."""
    decoded: tuple[str, ...]
    """Full paths of quantized layers that are not packed."""
    dtype: str
    """Of the scales, and of every tensor that is not packed."""

    def __str__(self) -> str:
        """``2 bits, groups of 128, symmetric, scales of bf16``."""
        zeros = "symmetric" if self.symmetric else "zero points of their own"
        return f"{self.bits} bits, groups of {self.group}, {zeros}, scales of {self.dtype}"

    @classmethod
    def of(cls, opened: OpenedArtifact, asked: str | None) -> "Packing":
        """Decide how an artifact is written.

        Args:
            opened: the artifact.
            asked: dtype of the scales; if None the first of bf16 and f16 that holds them all.

        Raises:
            QdcError: layers are of another codec or form; all of them are named.
            InvalidArtifact: ``asked`` does not hold the scales, or they are damaged.
        """
        library()
        inside = {path: codec for path, codec in opened.codecs.items() if in_blocks(path)}
        layers = _uniform(inside)
        some = next(iter(layers.values()))
        weights = opened.weights
        _refuse_torn(published_layers(opened.module), layers)
        _refuse_stacks(set(stacked_layers(opened.module)) & set(layers))
        symmetric = all(_is_central(weights, path, codec) for path, codec in layers.items())
        if not symmetric:
            _refuse_broken_words(layers)
        return cls(
            bits=some.bits,
            group=some.group,
            symmetric=symmetric,
            layers=layers,
            ignored=tuple(_linears_beside(opened, layers)),
            decoded=tuple(path for path in opened.codecs if path not in layers),
            dtype=_scales_dtype(weights, layers, asked),
        )

    def tensors(self, weights: Weights, layer: str, parts: Sequence[str] = ()) -> dict[str, Tensor]:
        """What stands in the place of a layer's weight, by full name.

        Args:
            weights: of the artifact.
            layer: the path that it is written under.
            parts: the layers that are its rows, in order; itself if there are none.

        Returns:
            ``weight_packed`` i32[rows, columns * bits / 32], ``weight_scale`` [rows, G],
            ``weight_shape`` i64[2], and if not symmetric ``weight_zero_point``
            i32[rows * bits / 32, G].
        """
        found = [self._packed(weights, part) for part in parts or [layer]]
        whole = {name: torch.cat([part[name] for part in found]) for name in found[0]}
        rows = sum(self.layers[part].rows for part in parts or [layer])
        columns = self.layers[(parts or [layer])[0]].columns
        whole["weight_shape"] = torch.tensor([rows, columns])
        return {file_key(layer, suffix): tensor for suffix, tensor in whole.items()}

    def _packed(self, weights: Weights, layer: str) -> dict[str, Tensor]:
        """The same of one layer of the artifact, without its shape; rows come first in each."""
        codec = self.layers[layer]
        stored = weights.stored(layer)
        scale = stored["scale"].to(torch_dtype(self.dtype))
        zero = unpack_codes(stored["zero"], codec.bits, codec.groups)
        middle = 1 << (self.bits - 1)
        mirrored = (zero != middle) & self.symmetric
        pack = library().compressors.pack_quantized.pack_to_int32
        parts = torch.split(torch.arange(codec.rows), max(1, AT_ONCE // codec.columns))
        packed = [
            pack(_signed(stored["codes"][rows], codec, mirrored[rows]), self.bits) for rows in parts
        ]
        found = {
            "weight_packed": torch.cat(packed),
            "weight_scale": torch.where(mirrored, -scale, scale),
        }
        if not self.symmetric:
            centred = (zero.to(torch.int16) - middle).to(torch.int8)
            found["weight_zero_point"] = pack(centred, self.bits, packed_dim=0).contiguous()
        return found

    def nbytes(self, layer: str) -> int:
        """Bytes of these tensors."""
        codec = self.layers[layer]
        words = codec.rows * -(-codec.columns * self.bits // WORD)
        zeros = 0 if self.symmetric else codec.groups * -(-codec.rows * self.bits // WORD)
        scales = codec.rows * codec.groups * torch_dtype(self.dtype).itemsize
        return 4 * (words + zeros) + scales + 2 * 8

    @property
    def effective_bits(self) -> float:
        """Bits a packed weight, scales, zero points and shapes counted."""
        weights = sum(codec.rows * codec.columns for codec in self.layers.values())
        return 8 * sum(map(self.nbytes, self.layers)) / weights

    def quantization_config(self) -> dict[str, Any]:
        """What ``config.json`` says of it, as the library itself writes and reads it."""
        package = library()
        made = package.quantization.QuantizationConfig(
            config_groups={
                "group_0": package.quantization.QuantizationScheme(
                    targets=[LINEAR],
                    weights=package.quantization.QuantizationArgs(
                        num_bits=self.bits,
                        type="int",
                        symmetric=self.symmetric,
                        strategy="group",
                        group_size=self.group,
                    ),
                    format=FORMAT,
                )
            },
            format=FORMAT,
            quantization_status="compressed",
            ignore=list(self.ignored),
        )
        rest = made.model_dump(mode="json", exclude={"quant_method"})
        return {
            "version": package.__version__,
            "quant_method": made.quant_method,
            "sparsity_config": {},
            "transform_config": {},
            **rest,
        }


def in_blocks(path: str) -> bool:
    """Whether a layer is one of a block: embedding and head, which engines keep, are in none."""
    return any(part.isdigit() for part in path.split("."))


def _uniform(codecs: Mapping[str, Codec]) -> dict[str, UniformGrid]:
    """The layers of the blocks, if they can all be packed alike. Raises ``QdcError``."""
    if not codecs:
        raise QdcError("no layer of a block is quantized: there is nothing to pack", help=COMPILE)
    found = {path: codec for path, codec in codecs.items() if isinstance(codec, UniformGrid)}
    wrong = {path: f"codec {c.name}" for path, c in codecs.items() if path not in found}
    wrong |= {path: reason for path, codec in found.items() if (reason := _unfit(codec))}
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


def _refuse_broken_words(layers: Mapping[str, UniformGrid]) -> None:
    """Engines read zero points of rows by whole words. Raises ``QdcError``."""
    wrong = [p for p, codec in layers.items() if codec.rows * codec.bits % WORD]
    if wrong:
        raise QdcError(
            f"zero points of {len(wrong)} layers do not fill words of {WORD} bits",
            where=[f"{path}: {layers[path].rows} rows" for path in wrong],
            help=COMPILE + ", and need no zero points",
        )


def _refuse_torn(whole: Mapping[str, str], packed: Collection[str]) -> None:
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


def _refuse_stacks(layers: Collection[str]) -> None:
    """Refuse experts that the class in transformers has stacked. Raises ``QdcError``."""
    if layers:
        raise QdcError(
            f"{len(layers)} layers are experts that the model's own class reads as one tensor of "
            "three axes, which this format cannot pack",
            where=sorted(layers),
            help="export with --format dense, or keep the artifact and load it with qdc.load",
        )


def _linears_beside(opened: OpenedArtifact, packed: Iterable[str]) -> Iterator[str]:
    """Full paths of the linears, and of the routers of experts, that stay dense."""
    told = opened.source.config[QUANTIZATION].get("modules_to_not_convert", [])
    names = [path for path, m in opened.body.named_modules() if isinstance(m, nn.Linear)]
    routers = [path for path in told if isinstance(path, str)] if isinstance(told, list) else []
    left, whole = set(packed), published_layers(opened.module)
    beside = (path for path in (*names, *routers) if path not in left)
    yield from dict.fromkeys(whole.get(path, path) for path in beside)


def _is_central(weights: Weights, layer: str, codec: UniformGrid) -> bool:
    """Whether every zero point that says something is one of the two codes next to the middle."""
    zero = unpack_codes(weights.plain(file_key(layer, "zero")), codec.bits, codec.groups)
    scale, middle = weights.plain(file_key(layer, "scale")), 1 << (codec.bits - 1)
    return bool(((zero == middle) | (zero == middle - 1) | (scale == 0)).all())


def _scales_dtype(weights: Weights, layers: Iterable[str], asked: str | None) -> str:
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


def _signed(codes: Tensor, codec: UniformGrid, mirrored: Tensor) -> Tensor:
    """Codes as the library packs them, ``i8[rows, columns]``: those of mirrored grids turned round.

    Args:
        codes: u8[rows, G, bytes], stored.
        codec: of the layer, in whole groups.
        mirrored: bool[rows, G].
    """
    unpacked = unpack_codes(codes, codec.bits, codec.group).to(torch.int16)
    highest, middle = (1 << codec.bits) - 1, 1 << (codec.bits - 1)
    turned = torch.where(mirrored[..., None], highest - unpacked, unpacked)
    return (turned - middle).to(torch.int8).flatten(1)
