"""What codecs share whose codes stand in coordinates that random rotations have mixed.

``docs/format.md`` specifies the rotations.
"""

import math
from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.codec import SIZE_LIMIT, Codec, Tensors
from qdc.format.relaxedscale import RelaxedScale
from qdc.format.rescaling import OneScale
from qdc.ir.types import ValueType
from qdc.numerics.hadamard import random_signs, transform_size, walsh_hadamard

WIDEST = 1 << 20
"""Most rows or columns: their signs are drawn again at each reading."""


class RotatedCode(Codec):
    """W = scale * S_r H_r P H_c S_c, with P written out from codes.

    H are unnormalised Hadamard matrices, whose norm is in the factor, S diagonals of random signs.
    """

    rows: int = Field(gt=0, le=min(WIDEST, SIZE_LIMIT))
    columns: int = Field(gt=0, le=min(WIDEST, SIZE_LIMIT))

    @abstractmethod
    def points(self, codes: Tensor) -> Tensor:
        """Write the codes out: P, f32[rows, columns]."""

    @property
    def working_bytes(self) -> int:
        """As stored."""
        return self.nbytes

    @property
    def rotation_text(self) -> str:
        """``rotated by 64 and 512``, the sizes of the transforms of outputs and inputs."""
        return f"rotated by {transform_size(self.rows)} and {transform_size(self.columns)}"

    @staticmethod
    def rotation() -> dict[str, ValueType]:
        """One scale, and the seeds of both rotations."""
        return {
            "scale": ValueType(dtype="f16", shape=(1,)),
            "seeds": ValueType(dtype="i32", shape=(2,)),
        }

    def check(self, stored: Tensors, layer: str) -> None:
        """Compare with the specification; seeds must be such."""
        super().check(stored, layer)
        if bool((stored["seeds"] < 0).any()):
            raise InvalidArtifact("a seed is below 0", where=[layer])

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """The working form is the stored one."""
        return {suffix: tensor.contiguous() for suffix, tensor in working.items()}

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """The working form is the stored one."""
        return dict(stored)

    def dense(self, working: Tensors) -> Tensor:
        """Points, both transforms by additions alone, then one factor; fp32, columns first."""
        points = self.points(working["codes"])
        mixed = walsh_hadamard(points, transform_size(self.columns))
        mixed = walsh_hadamard(mixed.T, transform_size(self.rows)).T
        inputs, outputs = working["seeds"].tolist()
        mixed = mixed * self.factor(working["scale"])
        mixed = mixed * random_signs(self.columns, inputs).to(mixed.device)
        mixed = mixed * random_signs(self.rows, outputs).to(mixed.device)[:, None]
        return mixed.contiguous()

    def factor(self, scale: Tensor) -> float:
        """The scale over the norm of both transforms, rounded to fp32."""
        norm = math.sqrt(transform_size(self.rows) * transform_size(self.columns))
        return float(torch.tensor(float(scale) / norm, dtype=torch.float32))

    def relax(self, working: Tensors, weight: Tensor) -> RelaxedScale:
        """The scale alone, which starts at the working tensors'."""
        one = torch.ones_like(working["scale"])
        return RelaxedScale(working, self.dense({**working, "scale": one}))

    def rescaling(self) -> OneScale:
        """The scale alone."""
        return OneScale(self.dense)
