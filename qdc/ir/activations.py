"""What linears do with the values that they read and give, beyond their weights.

A rotated layer multiplies its inputs by a seeded rotation, and its weight is the original one in
rotated coordinates; what it computes stays the same until something is rounded. A layer with input
codes multiplies inputs that were rounded to few bits, token by token; one with output codes rounds
what it gives, as attention's values are.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Kept
from qdc.ir.types import Frozen, TensorRef, ValueType
from qdc.numerics.hadamard import SEEDS, RandomHadamard, random_signs, transform_size
from qdc.numerics.rowquantizer import RowQuantizer, Scales, Zeros

if TYPE_CHECKING:
    import torch

    from qdc.ir.graph import LayerGraph, Node

Clip = Annotated[float, Field(gt=0, le=1)]
"""Share of the range of a group that codes span."""
WIDEST = 1 << 24


class RowFormat(Frozen):
    """How a value is quantized, token by token; what an artifact says of it."""

    bits: Literal[4, 8]
    group: int = Field(default=0, ge=0, le=WIDEST)
    """Columns that share a scale; 0 for all of them."""
    zeros: Zeros = "symmetric"
    scales: Scales = "f32"
    clip: tuple[Clip, ...] = Field(default=(1.0,), min_length=1, max_length=2)
    """One for all tokens, or one for visible and one for masked tokens."""
    static: bool = False
    """Whether scales are stored; else they are those of each token as it comes."""

    @property
    def quantizer(self) -> RowQuantizer:
        """The arithmetic of it."""
        return RowQuantizer(self.bits, self.group, self.zeros, self.scales)

    def specification(self, columns: int) -> dict[str, ValueType]:
        """Stored tensors of static scales by suffix: one row a class of tokens."""
        if not self.static:
            return {}
        shape = (len(self.clip), self.quantizer.groups(columns))
        found = {"input_scale": ValueType(dtype=self.scales, shape=shape)}
        if self.zeros == "asymmetric":
            found["input_zero"] = ValueType(dtype="i8", shape=shape)
        return found

    def text(self) -> str:
        """``4 bits   tokens   clip 0.9, masked 0.8``."""
        where = f"groups of {self.group}" if self.group else "tokens"
        parts = [f"{self.bits} bits", f"{'static ' if self.static else ''}{where}"]
        parts += ["asymmetric"] if self.zeros == "asymmetric" else []
        visible, *masked = self.clip
        if masked or visible != 1:
            parts.append(f"clip {visible:g}" + "".join(f", masked {clip:g}" for clip in masked))
        return "   ".join(parts)


class LayerActivations(Frozen):
    """All that a linear does with activations, as the configuration of an artifact says it."""

    rotation: int | None = Field(default=None, ge=0, lt=SEEDS)
    """Seed of the rotation of its inputs; None for none."""
    input: RowFormat | None = None
    """How its inputs are quantized, once they are rotated."""
    output: RowFormat | None = None
    """How what it gives is quantized; never with static scales."""

    @model_validator(mode="after")
    def _dynamic_outputs(self) -> "LayerActivations":
        if self.output is not None and self.output.static:
            raise ValueError("outputs have no static scales")
        return self

    @property
    def only_rotates(self) -> bool:
        """Whether all that is done is a rotation of its inputs."""
        return self.input is None and self.output is None

    @property
    def by_class(self) -> bool:
        """Whether masked tokens are told from visible ones."""
        formats = (self.input, self.output)
        return any(len(each.clip) > 1 for each in formats if each is not None)

    def specification(self, columns: int) -> dict[str, ValueType]:
        """Stored tensors beside those of the codec, by suffix."""
        return {} if self.input is None else self.input.specification(columns)


class OfActivations(Annotation):
    """What a linear does with activations: a runtime has to do it too, or refuse."""


class Rotation(OfActivations):
    """The layer reads x Q in the place of x, and its weight W is W Q."""

    tag: ClassVar[str] = "rotation"
    seed: int = Field(ge=0, lt=SEEDS)
    """Of the signs of Q (``RandomHadamard``); layers of one stage have the same."""
    head: int | None = Field(default=None, ge=2)
    """Columns of a head, where what the layer reads comes rotated head by head: nothing is to be
    computed for it, and no artifact says it."""

    @model_serializer(mode="wrap")
    def _without_default(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the last one out where it says nothing."""
        data: dict[str, Any] = dump(self)
        return {name: value for name, value in data.items() if value is not None}

    def of(self, columns: int, device: "torch.device | str" = "cpu") -> RandomHadamard:
        """The rotation of so many columns."""
        return _heads(self.seed, self.head or columns, columns, device)

    def text(self) -> str:
        """``seed 1804289383``."""
        folded = "" if self.head is None else f"   of heads of {self.head}, folded"
        return f"seed {self.seed}{folded}"

    def problems(self, node: "Node") -> Iterator[str]:
        """A rotation of single columns would only turn signs."""
        if transform_size(self.head or node.columns) < 2 or node.columns % (self.head or 1):
            yield f"{node.columns} columns have no rotation: their number is odd, or of no heads"


class RotatedHeads(OfActivations):
    """Of a value projection: the rows of its weight are rotated head by head.

    Attention mixes rotated values then, and the linear behind it reads them rotated: its own
    ``Rotation`` says the same seed.
    """

    tag: ClassVar[str] = "rotated-heads"
    seed: int = Field(ge=0, lt=SEEDS)
    width: int = Field(ge=2)
    """Rows of a head."""

    def of(self, rows: int, device: "torch.device | str" = "cpu") -> RandomHadamard:
        """The rotation of so many rows."""
        return _heads(self.seed, self.width, rows, device)

    def text(self) -> str:
        """``seed 1804289383   heads of 64``."""
        return f"seed {self.seed}   heads of {self.width}"

    def problems(self, node: "Node") -> Iterator[str]:
        """Rows are whole heads, and a transform mixes them."""
        if node.rows % self.width or transform_size(self.width) < 2:
            yield f"{node.rows} rows are no heads of {self.width} that could be rotated"


class InputCodes(OfActivations):
    """What the layer reads is quantized, once it is rotated."""

    tag: ClassVar[str] = "input-codes"
    form: RowFormat
    tensors: tuple[TensorRef, ...] = ()
    """Static scales, and zero points."""
    suffixes: tuple[str, ...] = ()
    """Name of each of them after the layer's path."""
    error: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Squared error on the calibration states, as a share; None if nothing was measured."""

    @property
    def nbytes(self) -> int:
        """Stored bytes of static scales."""
        return sum(ref.nbytes for ref in self.tensors)

    def text(self) -> str:
        """``8 bits   tokens   error 1.3e-04``."""
        return self.form.text() + ("" if self.error is None else f"   error {self.error:.1e}")

    def problems(self, node: "Node") -> Iterator[str]:
        """Static scales are there, of the right shape, and nothing else is."""
        wanted = self.form.specification(node.columns)
        found = {
            suffix: ValueType(dtype=ref.dtype, shape=ref.shape)
            for suffix, ref in zip(self.suffixes, self.tensors, strict=False)
        }
        if len(self.suffixes) != len(self.tensors) or found != wanted:
            yield f"static scales are {sorted(map(str, found))}, not {sorted(map(str, wanted))}"


class OutputCodes(OfActivations):
    """What the layer gives is quantized, with scales of each token."""

    tag: ClassVar[str] = "output-codes"
    form: RowFormat
    error: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Squared error, weighted by attention, as a share; None if nothing was measured."""

    def text(self) -> str:
        """``4 bits   tokens   clip 0.8   error 1.3e-02``."""
        return self.form.text() + ("" if self.error is None else f"   error {self.error:.1e}")

    def problems(self, node: "Node") -> Iterator[str]:
        """They are of each token as it comes."""
        if self.form.static:
            yield "outputs have no static scales"


def of_activations(graph: "LayerGraph", name: str) -> LayerActivations | None:
    """All that a layer does with activations; None if nothing, or if it is kept as it is."""
    if graph.get(name, Kept) is not None:
        return None
    rotation, codes = graph.get(name, Rotation), graph.get(name, InputCodes)
    outputs = graph.get(name, OutputCodes)
    seed = None if rotation is None or rotation.head is not None else rotation.seed
    if seed is None and codes is None and outputs is None:
        return None
    return LayerActivations(
        rotation=seed,
        input=None if codes is None else codes.form,
        output=None if outputs is None else outputs.form,
    )


def _heads(seed: int, width: int, count: int, device: "torch.device | str") -> RandomHadamard:
    """The same rotation of each ``width`` columns of ``count``; that of all, if they are equal."""
    signs = random_signs(width, seed).repeat(count // width).to(device)
    return RandomHadamard(signs, transform_size(width))
