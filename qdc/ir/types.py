"""Types of values and of stored tensors; their short text is ``dtype[shape]``."""

import math
import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator

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
        for size in shape:
            if isinstance(size, int) and size < 0:
                raise ValueError(f"negative size {size}")
            if isinstance(size, str) and not re.fullmatch(r"[A-Z](\*[A-Z])*", size):
                raise ValueError(f"bad dimension name {size!r}")
        return shape

    def __str__(self) -> str:
        """``f16[B,L,512]``."""
        return shape_text(self.dtype, self.shape)

    def elements(self, dimensions: dict[str, int]) -> int:
        """Number of elements once the named dimensions are known."""
        total = 1
        for size in self.shape:
            names = [size] if isinstance(size, int) else [dimensions[n] for n in size.split("*")]
            total *= math.prod(names)
        return total


class TensorRef(ValueType):
    """A named tensor that lives outside the graph, in a tensor table or an artifact."""

    name: str = Field(min_length=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the tensor's bytes, little-endian, row-major."""

    @property
    def nbytes(self) -> int:
        """Stored size in bytes."""
        return self.elements({}) * BYTES[self.dtype]


class Parameter(ValueType):
    """A tensor of the checkpoint that a node reads."""

    name: str = Field(min_length=1)
    """Its key in the checkpoint."""
    role: str = "weight"
    """``weight`` or ``bias``: the attribute of the module that holds it."""

    @property
    def nbytes(self) -> int:
        """Stored size in bytes."""
        return self.elements({}) * BYTES[self.dtype]
