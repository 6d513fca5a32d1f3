"""Uniform codes as packed integers of the library ``compressed-tensors``, which engines load.

A layer of the codec ``uniform`` whose zero points are codes is what the library calls
``pack-quantized``: W = scale * (code - zero), codes and zero points in 32-bit words, lowest bits
first. Nothing is rounded on the way but the product, to the dtype of the scales, as the library
does itself. Where every zero point is one of the two codes next to the middle of the grid the
weights are written as symmetric ones, which more engines take: -s * (code' - middle) with the codes
mirrored is the same number.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdc.artifact.config import QUANTIZATION
from qdc.errors import QdcError
from qdc.exporting.packable import (
    FORMAT,
    WORD,
    in_blocks,
    is_central,
    packed_layers,
    refuse_broken_words,
    refuse_stacks,
    refuse_torn,
    scales_dtype,
)
from qdc.exporting.published import published_layers, stacked_layers
from qdc.format.uniformgrid import UniformGrid
from qdc.format.weights import Weights
from qdc.ir.keys import file_key
from qdc.ir.tensors import torch_dtype
from qdc.numerics.uniform import unpack_codes
from qdc.runtime.load import OpenedArtifact
from qdc.version import install

LINEAR = "Linear"
"""What engines look for among the targets; names of layers are not understood by all of them."""
AT_ONCE = 1 << 24
"""Weights that are packed at a time: the library takes some bytes for each meanwhile."""


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
        layers = packed_layers(inside, opened.weights.rotated)
        some = next(iter(layers.values()))
        weights = opened.weights
        refuse_torn(published_layers(opened.module), layers)
        refuse_stacks(set(stacked_layers(opened.module)) & set(layers))
        symmetric = all(is_central(weights, path, codec) for path, codec in layers.items())
        if not symmetric:
            refuse_broken_words(layers)
        return cls(
            bits=some.bits,
            group=some.group,
            symmetric=symmetric,
            layers=layers,
            ignored=tuple(_linears_beside(opened, layers)),
            decoded=tuple(path for path in opened.codecs if path not in layers),
            dtype=scales_dtype(weights, layers, asked),
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


def _linears_beside(opened: OpenedArtifact, packed: Iterable[str]) -> Iterator[str]:
    """Full paths of the linears, and of the routers of experts, that stay dense."""
    told = opened.source.config[QUANTIZATION].get("modules_to_not_convert", [])
    names = [path for path, m in opened.body.named_modules() if isinstance(m, nn.Linear)]
    routers = [path for path in told if isinstance(path, str)] if isinstance(told, list) else []
    left, whole = set(packed), published_layers(opened.module)
    beside = (path for path in (*names, *routers) if path not in left)
    yield from dict.fromkeys(whole.get(path, path) for path in beside)


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
