"""The debug switch: packed modules that compare what they give with the reference formula.

``QDC_CHECK_KERNELS=1`` in the environment when an artifact is loaded. Each call then decodes the
layer's stored tensors to a dense weight and computes in fp64: slow, and it takes the memory of one
dense layer, but it names the first layer whose kernel is wrong on this card with these inputs.
"""

import os

import torch
from torch import Tensor, nn

from qdc.errors import QdcError
from qdc.format.codec import Codec, Tensors
from qdc.format.multibinary import MultiBinary
from qdc.format.trelliscode import TrellisCode
from qdc.format.uniformgrid import UniformGrid
from qdc.numerics.components import Components, dense

from .checkingrotated import RotatedSpread
from .modules import PackedEmbedding
from .parts import Part

SWITCH = "QDC_CHECK_KERNELS"
FP32 = 2.0**-24
"""Unit roundoff of fp32, in which kernels add."""


def wanted() -> bool:
    """Whether the switch is on. Raises ``QdcError`` for a value that is neither 0 nor 1."""
    value = os.environ.get(SWITCH, "0")
    if value not in ("", "0", "1"):
        raise QdcError(f"{SWITCH} is {value!r}", help="set it to 1 to check kernels, or to 0")
    return value == "1"


class KernelMismatch(ArithmeticError):
    """A kernel computes something else than the format's formula: a bug, not a user's mistake."""


class Checked(nn.Module):
    """A packed module, and the stored tensors that it was made of."""

    def __init__(self, packed: nn.Module, parts: list[Part], label: str) -> None:
        """Hold both.

        Args:
            packed: what is checked.
            parts: what it was made of, joined in this order along the rows.
            label: names the layers in the error.
        """
        super().__init__()
        self.packed, self.label = packed, label
        self.codecs: list[Codec] = [part.codec for part in parts]
        device = next(packed.buffers()).device
        for index, part in enumerate(parts):
            for suffix, tensor in part.stored.items():
                self.register_buffer(f"stored{index}_{suffix}", tensor.to(device), persistent=False)
            if part.bias is not None:
                self.register_buffer(f"bias{index}", part.bias.to(device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """What the packed module gives.

        Raises:
            KernelMismatch: it is further off than rounding explains; names the layer, the largest
                deviation and its tolerance.
        """
        found: Tensor = self.packed(x)
        parts = [self._expected(index, x, found.dtype) for index in range(len(self.codecs))]
        expected, allowed = (torch.cat(each, dim=-1) for each in zip(*parts, strict=True))
        off = (found.double() - expected).abs()
        excess = torch.where(off.isfinite(), off - allowed, torch.inf)
        if excess.numel() and bool(excess.max() > 0):
            worst = int(excess.argmax())
            raise KernelMismatch(
                f"the kernel of {self.label} is off by {float(off.flatten()[worst]):.3g}, rounding "
                f"explains {float(allowed.flatten()[worst]):.3g}; its input is {x.dtype} "
                f"{tuple(x.shape)}; load with the backend reference, and report it with the card "
                "and the versions"
            )
        return found

    def _expected(self, index: int, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The formula in fp64, and how far a correct kernel may be off."""
        codec = self.codecs[index]
        suffixes = codec.specification()
        formula = Formula(codec, {s: getattr(self, f"stored{index}_{s}") for s in suffixes})
        if isinstance(self.packed, PackedEmbedding):
            return formula.embedding(x, dtype)
        return formula.linear(x, self._buffers.get(f"bias{index}"), dtype)


class Formula:
    """What a layer computes, by the format's formula in fp64, and how exact a kernel must be."""

    def __init__(self, codec: Codec, stored: Tensors) -> None:
        """Decode a layer's stored tensors; it holds two fp64 matrices from then on."""
        working = codec.unpack(stored)
        self.codec = codec
        self.weight = codec.dense(working).double()
        """``f64[rows, columns]``."""
        self.spread = RotatedSpread(codec, working) if isinstance(codec, TrellisCode) else None
        magnitude = self.weight.abs() if self.spread else _magnitude(codec, working)
        self.magnitude = magnitude.double()
        """``f64[rows, columns]``: the sum of the magnitudes that each weight is computed from."""
        planes = max(codec.orders) if isinstance(codec, MultiBinary) else 2
        self._products = codec.columns * planes
        multi = isinstance(codec, MultiBinary)
        largest = float(working["row_scale"].abs().max()) if multi else 0.0
        self._steps = self._products * largest

    def embedding(self, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rows of the weight, ``f64[..., columns]``, and how far a kernel may be from them."""
        exact, unit = self.weight[ids], torch.finfo(dtype).eps / 2
        return exact, 2 * (unit * exact.abs() + 4 * FP32 * self.magnitude[ids])

    def linear(self, x: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The exact product, and how far a correct kernel may be from it.

        With u the unit roundoff of ``dtype`` and S = |x| M^T for magnitudes M: rounding a column
        scale and the input that it is folded into costs 2 u S, rounding weights instead u S, adding
        n products in fp32 n 2^-24 S, rounding the bias and the result u |b| + u |y|. Half as much
        again leaves room for products of these. What underflows in ``dtype`` costs its smallest
        step, of every input or weight. ``RotatedSpread`` has the bound where rotations mix errors.

        Args:
            x: ``[..., columns]``.
            bias: ``[rows]``.
            dtype: of the kernel's input and output.

        Returns:
            Both ``f64[..., rows]``.
        """
        info = torch.finfo(dtype)
        unit, step = info.eps / 2, info.smallest_normal * info.eps
        wide = x.double()
        exact = wide @ self.weight.T
        size = wide.abs() @ self.magnitude.T
        steps = wide.abs().sum(-1, keepdim=True) + self._steps
        ends = exact.abs()
        if bias is not None:
            exact = exact + bias.double()
            ends = ends + 2 * bias.double().abs()
        if self.spread is not None:
            return exact, 1.5 * (self.spread.allowed(wide, unit, step) + unit * ends)
        sums = FP32 * self._products * size
        return exact, 1.5 * (2 * unit * size + sums + unit * ends + step * steps)


def _magnitude(codec: Codec, working: Tensors) -> Tensor:
    if isinstance(codec, MultiBinary):
        bare = (
            (torch.ones_like(c.signs), *map(torch.abs, c[1:])) for c in codec.components(working)
        )
        return torch.cat([dense(Components(*each)) for each in bare], dim=1)
    assert isinstance(codec, UniformGrid)
    centre = 2 ** (codec.bits - 1)
    scale = working["scale"].float()[..., None]
    offset = (codec.minima(working)[..., None] + centre * scale).abs()
    whole = scale.abs() * (working["codes"].float() - centre).abs() + offset
    found: Tensor = whole.flatten(1)[:, : codec.columns]
    return found
