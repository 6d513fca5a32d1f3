"""Linears whose inputs and weights are both whole numbers, and are multiplied as such.

This is the definition of what such a layer computes (docs/format.md). Codes are held unpacked, a
byte a weight, whether they have 8 bits or fewer.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdc.errors import QdcError
from qdc.format.codec import Codec
from qdc.format.uniformgrid import UniformGrid
from qdc.format.weights import Weights
from qdc.ir.activations import LayerActivations
from qdc.ir.keys import file_key
from qdc.numerics.integer_linear import IntegerWeight, integer_linear
from qdc.runtime.activations import READS, InputTransform

HELD = ("codes", "sums", "scale", "minimum", "zero")
"""Tensors of an ``IntegerWeight``."""
NO_GRADIENT = "load the model with the original weights to train it"


class IntegerLinear(nn.Module):
    """A linear on a uniform grid, whose inputs are quantized by the module in front of it.

    Args:
        codec: of the weight.
        stored: its stored tensors.
        bias: ``[rows]``, or None.
        dtype: of what ``weight`` gives.
        group: columns of an input that share a scale; 0 for all.
    """

    reads_codes = True
    """It asks for codes of its inputs: nothing is to be put in front of it."""
    codes: Tensor
    scale: Tensor

    def __init__(
        self,
        codec: UniformGrid,
        stored: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
        group: int = 0,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = codec.columns, codec.rows
        self.codec, self.dtype = codec, dtype
        working = codec.unpack(stored)
        weight = IntegerWeight.of(
            working["codes"].flatten(1)[:, : codec.columns],
            working["scale"],
            working.get("minimum"),
            working.get("zero"),
            codec.group,
            group,
        )
        self._layout, self.group = weight._asdict(), group
        for name in HELD:
            self.register_buffer(name, self._layout.pop(name))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., columns] -> [..., rows]`` in the dtype of what comes in.

        Raises:
            QdcError: gradients are asked for, or the module was cast.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise QdcError("whole numbers have no gradient", help=NO_GRADIENT)
        if self.codes.dtype != torch.int8 or self.scale.dtype != torch.float32:
            raise QdcError(
                "a model that computes in whole numbers was cast",
                help="load it again with the dtype that is wanted",
            )
        reads = self.get_submodule(READS)
        assert isinstance(reads, InputTransform)
        rows = reads.codes(x)
        if reads.group != self.group:
            raise QdcError("a linear of whole numbers reads codes in groups of another width")
        flat = rows._replace(
            codes=rows.codes.flatten(0, -2),
            scale=rows.scale.flatten(0, -2),
            zero=None if rows.zero is None else rows.zero.flatten(0, -2),
        )
        result = integer_linear(flat, self.group, self._weight())
        bias = self._buffers["bias"]
        if bias is not None:
            result = result.add_(bias.float())
        return result.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    @property
    def weight(self) -> Tensor:
        """The dense weight ``[rows, columns]``, written out at each access; nothing reads it."""
        return self._weight().dense().to(self.dtype)

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return f"{self.in_features}, {self.out_features}, {self.codec.bits} bits"

    def _weight(self) -> IntegerWeight:
        held: dict[str, Any] = {name: self._buffers[name] for name in HELD}
        return IntegerWeight(**held, **self._layout)


def is_integer(codec: Codec, does: LayerActivations | None) -> bool:
    """Whether a layer multiplies whole numbers: its inputs and its weight are on such grids."""
    quantized = does is not None and does.input is not None
    return quantized and type(codec) is UniformGrid


def integer_bytes(codec: Codec) -> int:
    """Bytes of the module: a byte a code, and 12 for each grid: scales, minima, and sums."""
    assert isinstance(codec, UniformGrid), "whole numbers are those of uniform grids"
    return codec.rows * (codec.columns + 12 * codec.groups)


def put_integers(
    module: nn.Module, weights: Weights, device: torch.device, dtype: torch.dtype
) -> set[str]:
    """Put such layers into a model on meta; what is in front of them comes later.

    Args:
        module: the model.
        weights: its tensors.
        device: where codes go.
        dtype: of activations.

    Returns:
        Paths of the layers.
    """
    replaced = set[str]()
    for path, codec in weights.codecs.items():
        if not is_integer(codec, weights.activations.get(path)):
            continue
        assert isinstance(codec, UniformGrid)
        old = module.get_submodule(path)
        bias = None
        if old._parameters.get("bias") is not None:
            # Rounded as it would be beside dense weights.
            bias = weights.plain(file_key(path, "bias")).to(device, dtype)
        stored = {suffix: tensor.to(device) for suffix, tensor in weights.stored(path).items()}
        form = weights.activations[path].input
        group = 0 if form is None else form.group
        module.set_submodule(path, IntegerLinear(codec, stored, bias, dtype, group).eval())
        replaced.add(path)
    return replaced
