"""Types of values and of stored tensors; their short text is ``dtype[shape]``."""

import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    field_validator,
)

SHORT = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16",
    "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8", "uint8": "u8", "bool": "bool",
}  # fmt: skip
BYTES = {
    "f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1,
    "bool": 1,
}  # fmt: skip
Dimension = int | str
"""A size, or the name of one that is known only at run time: ``B`` (batch), ``L`` (length)."""
LARGEST_SIZE, MOST_DIMENSIONS = 1 << 40, 8


def _exact(value: object) -> Fraction:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}/[1-9][0-9]{0,17}", value):
        return Fraction(value)
    if isinstance(value, int | Fraction) and not isinstance(value, bool) and value >= 0:
        return Fraction(value)
    raise ValueError("is neither a whole number nor a ratio of two, as in 7/4")


def _plain(value: Fraction) -> int | str:
    return value.numerator if value.denominator == 1 else str(value)


Ratio = Annotated[
    Fraction | int,
    PlainValidator(_exact),
    PlainSerializer(_plain),
    WithJsonSchema({"type": "string"}),
]
"""An exact number; stored as an integer, or as text ``7/4``."""


class Frozen(BaseModel):
    """Immutable, closed data: an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def short_dtype(name: str) -> str:
    """``torch.bfloat16`` or ``bfloat16`` ``-> bf16``. Raises ``KeyError`` for others."""
    return SHORT[name.removeprefix("torch.")]


def shape_text(dtype: str, shape: Sequence[Dimension]) -> str:
    """``f16[64,512]``."""
    return f"{dtype}[{','.join(map(str, shape))}]"


class ValueType(Frozen):
    """What flows along an edge."""

    dtype: str
    shape: tuple[Dimension, ...]

    @field_validator("dtype")
    @classmethod
    def _known(cls, dtype: str) -> str:
        if dtype not in BYTES:
            raise ValueError(f"unknown dtype {dtype!r}")
        return dtype

    @field_validator("shape")
    @classmethod
    def _sizes(cls, shape: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
        if len(shape) > MOST_DIMENSIONS:
            raise ValueError(f"more than {MOST_DIMENSIONS} dimensions")
        for size in shape:
            if isinstance(size, int) and not 0 <= size <= LARGEST_SIZE:
                raise ValueError(f"size {size} is outside 0..{LARGEST_SIZE}")
            if isinstance(size, str) and not re.fullmatch(r"[A-Z](\*[A-Z])*", size):
                raise ValueError(f"bad dimension name {size!r}")
        return shape

    def __str__(self) -> str:
        """``f16[B,L,512]``."""
        return shape_text(self.dtype, self.shape)

    def elements(self, dimensions: Mapping[str, int]) -> int:
        """Number of elements once the named dimensions are known."""
        total = 1
        for size in self.shape:
            names = [size] if isinstance(size, int) else [dimensions[n] for n in size.split("*")]
            total *= math.prod(names)
        return total


class Stored(ValueType):
    """A named tensor outside the graph: every size is a number."""

    shape: tuple[int, ...]
    name: str = Field(min_length=1)

    @property
    def nbytes(self) -> int:
        """Stored size in bytes."""
        return self.elements({}) * BYTES[self.dtype]


class TensorRef(Stored):
    """A tensor in a tensor table or an artifact."""

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the tensor's bytes, little-endian, row-major."""


class Parameter(Stored):
    """A tensor of the checkpoint that a node reads; its name is the key there."""

    role: str = Field(default="weight", pattern=r"^[A-Za-z_]\w*$", max_length=256)
    """``weight`` or ``bias``: the attribute of the module that holds it."""
