"""Storage formats of a quantized layer, and the annotation of a layer that was lowered to one.

A codec knows three forms of one weight: *working* tensors, which passes read and rewrite; *stored*
tensors, which the artifact holds; and the dense matrix. A quantizer brings its codec and its
annotation in its own file; packing, loading and reports need nothing else.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from qdc.errors import InvalidArtifact, InvalidGraph, InvalidPipeline, QdcError
from qdc.format.relaxation import Relaxation
from qdc.format.rescaling import Rescaling
from qdc.ir.annotation import Annotation
from qdc.ir.graph import Node
from qdc.ir.tensors import TensorTable
from qdc.ir.types import BYTES, Frozen, TensorRef, ValueType, short_dtype
from qdc.numerics.blocks import block_slices
from qdc.numerics.finite import is_finite

Tensors = Mapping[str, Tensor]
BitsWord = Literal["sign bits", "code bits"]
"""What the payload of a layer is called: signs alone, or codes of any kind."""
SIZE_LIMIT = 1 << 24


class Codec(Frozen):
    """How one layer is stored; the fields are what a reader needs beside the tensors."""

    name: ClassVar[str]
    """Stands in the artifact's configuration."""
    signs: ClassVar[bool] = False
    """Whether the payload bits are signs; they are called code bits otherwise."""
    by_rows: ClassVar[tuple[str, ...]] = ()
    """Stored tensors whose first dimension is the rows, where rows can be decoded one by one."""
    packed_only: ClassVar[tuple[str, ...]] = ()
    """Stored tensors that the working form lacks; ``pack`` makes them."""

    rows: int = Field(gt=0, le=SIZE_LIMIT)
    columns: int = Field(gt=0, le=SIZE_LIMIT)

    @property
    @abstractmethod
    def payload_bits(self) -> int:
        """Bits of signs or codes of the whole layer, without padding."""

    def text(self) -> str:
        """``1.6 bits``, for the annotations of layers stored so; a codec may say more."""
        return f"{self.payload_bits / (self.rows * self.columns):.4g} bits"

    @abstractmethod
    def specification(self) -> dict[str, ValueType]:
        """Type of every stored tensor, by its suffix: the predicted bytes."""

    @abstractmethod
    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Working form to stored form, without loss."""

    @abstractmethod
    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Stored form to working form, the inverse of ``pack``."""

    @abstractmethod
    def dense(self, working: Tensors) -> Tensor:
        """``f32[rows, columns]``, computed exactly as the format's formula says."""

    def dense_rows(self, stored: Tensors, rows: slice | Tensor) -> Tensor:
        """Some rows of the dense matrix, as ``dense`` has them, ``f32[n, columns]``.

        As it is, a codec without ``by_rows`` decodes all of the layer for it.

        Args:
            stored: the stored tensors.
            rows: a range of them, or their numbers ``i64[n]``.
        """
        if not self.by_rows:
            return self.dense(self.unpack(stored))[rows]
        part = {s: t[rows] if s in self.by_rows else t for s, t in stored.items()}
        count = part[next(s for s in self.by_rows if s in part)].shape[0]
        if not count:
            return torch.zeros(0, self.columns)
        codec = self.model_copy(update={"rows": count})
        return codec.dense(codec.unpack(part))

    @property
    def bits_word(self) -> BitsWord:
        """What reports call the payload bits."""
        return "sign bits" if self.signs else "code bits"

    @property
    def working_bytes(self) -> int:
        """Bytes of the working tensors, for ``qdc plan``: one a weight unless a codec knows."""
        return self.rows * self.columns

    @property
    def column_blocks(self) -> tuple[slice, ...]:
        """The columns in the parts that reports tell apart: a codec's own blocks, or of 128."""
        return block_slices(self.columns)

    def pack_exactly(self, working: Tensors, layer: str) -> dict[str, Tensor]:
        """Pack to the CPU, and prove that nothing was lost.

        Raises:
            InvalidGraph: the bytes are not the predicted ones, or unpacking gives another weight.
        """
        stored = {suffix: tensor.cpu() for suffix, tensor in self.pack(working).items()}
        self.check(stored, layer)
        nbytes = sum(tensor.nbytes for tensor in stored.values())
        if nbytes != self.nbytes:
            raise InvalidGraph(
                f"codec {self.name} predicted {self.nbytes} bytes and packed {nbytes}",
                where=[f"%{layer}"],
            )
        if not torch.equal(self.dense(self.unpack(stored)), self.dense(working).cpu()):
            raise InvalidGraph(
                f"codec {self.name} does not give back the weight that it packed",
                where=[f"%{layer}"],
            )
        return stored

    def relax(self, working: Tensors, weight: Tensor) -> Relaxation:
        """The working tensors as something that gradients can move.

        Args:
            working: where to start.
            weight: ``f32[rows, columns]``, the original.

        Raises:
            InvalidPipeline: the codec has no such form.
        """
        raise InvalidPipeline(
            f"layers stored as {self.name} cannot be polished",
            help="leave polish out, or lower them by a pass whose codec can: daq-lower",
        )

    def rescaling(self) -> Rescaling:
        """How the weight hangs on its continuous numbers, codes fixed.

        Raises:
            InvalidPipeline: the codec has no such form.
        """
        raise InvalidPipeline(
            f"layers stored as {self.name} cannot be distilled",
            help="leave distill out, or lower them by a pass whose codec can: trellis-lower",
        )

    @property
    def nbytes(self) -> int:
        """Predicted bytes of all stored tensors."""
        return sum(t.elements({}) * BYTES[t.dtype] for t in self.specification().values())

    def check(self, stored: Tensors, layer: str) -> None:
        """Compare stored tensors with the specification. Raises ``InvalidArtifact``."""
        wanted = self.specification()
        if set(stored) != set(wanted):
            raise InvalidArtifact(
                f"the stored tensors are {sorted(stored)}, not {sorted(wanted)}", where=[layer]
            )
        for suffix, tensor in stored.items():
            found = ValueType(dtype=short_dtype(str(tensor.dtype)), shape=tuple(tensor.shape))
            if found != wanted[suffix]:
                raise InvalidArtifact(
                    f"{suffix} is {found}, the format says {wanted[suffix]}", where=[layer]
                )
            if not is_finite(tensor):
                raise InvalidArtifact(f"{suffix} holds NaN or infinity", where=[layer])


class Lowered(Annotation):
    """A layer in the working form of a codec; subclasses narrow ``codec`` and add statistics."""

    slot: ClassVar[str] = "lowered"
    of_weight: ClassVar[bool] = True
    on: ClassVar[tuple[str, ...]] = ("linear", "embedding")

    codec: Codec
    tensors: tuple[TensorRef, ...] = ()
    suffixes: tuple[str, ...] = ()
    """Name of each working tensor."""
    error: float | None = Field(default=None, ge=0)
    """Relative output error on the calibration states; None if none were collected."""
    block_errors: tuple[float, ...] = ()
    """The share of each of the codec's column blocks in it; they add up to the error."""

    def text(self) -> str:
        """``1.6 bits   output error 1.3e-02``: the format, and what it cost."""
        return f"{self.codec.text()}{self.error_text()}"

    @classmethod
    def codec_class(cls) -> type[Codec]:
        """The codec that this annotation carries. Raises ``QdcError`` if it names none."""
        kind = cls.model_fields["codec"].annotation
        if not (isinstance(kind, type) and issubclass(kind, Codec) and hasattr(kind, "name")):
            raise QdcError(
                f"{cls.__name__} does not say which codec it carries",
                where=[f"{cls.__module__}.{cls.__qualname__}"],
                help="annotate its field codec with one subclass of Codec",
            )
        return kind

    @property
    def counts_signs(self) -> bool:
        """As the codec says."""
        return self.codec.signs

    def working(self, table: TensorTable) -> dict[str, Tensor]:
        """The working tensors by suffix. Raises ``InvalidGraph`` once they are released."""
        return {s: table.get(ref) for s, ref in zip(self.suffixes, self.tensors, strict=True)}

    def problems(self, node: Node) -> Iterator[str]:
        """The codec fits the node."""
        if (self.codec.rows, self.codec.columns) != (node.rows, node.columns):
            size = f"{self.codec.rows} x {self.codec.columns}"
            yield f"lowered as {size}, the weight is {node.weight}"
        if len(self.tensors) != len(self.suffixes):
            yield f"{len(self.suffixes)} names for {len(self.tensors)} working tensors"

    def error_text(self) -> str:
        """``   output error 1.3e-02``, or nothing."""
        return "" if self.error is None else f"   output error {self.error:.1e}"
