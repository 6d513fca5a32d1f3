"""The codec of QuIP#: points of the E8P lattice, in coordinates that random rotations have mixed.

``docs/format.md`` specifies it.
"""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.codec import SIZE_LIMIT, Codec, Tensors
from qdc.format.relaxedlattice import RelaxedLattice
from qdc.ir.types import ValueType
from qdc.numerics.hadamard import random_signs, transform_size, walsh_hadamard
from qdc.numerics.lattice import SIZE, lattice_points

WIDEST = 1 << 20
"""Most rows or columns: their signs are drawn again at each reading."""
SIXTEEN = 0xFFFF


class LatticeCode(Codec):
    """W = scale * S_r H_r P H_c S_c / rescale, with P made of points of eight columns.

    H are unnormalised Hadamard matrices, whose norm is in the factor, S diagonals of random signs.
    """

    name: ClassVar[str] = "e8p"

    rows: int = Field(gt=0, le=min(WIDEST, SIZE_LIMIT))
    columns: int = Field(gt=0, le=min(WIDEST, SIZE_LIMIT))
    rescaled: bool = False
    """Whether each column has a divisor of its own."""

    @property
    def codes(self) -> int:
        """Codes of a row; the last one may reach beyond the columns."""
        return -(-self.columns // SIZE)

    @property
    def payload_bits(self) -> int:
        """Two bits a weight."""
        return 2 * self.rows * self.columns

    @property
    def working_bytes(self) -> int:
        """As stored."""
        return self.nbytes

    def text(self) -> str:
        """``2 bits   rotated by 64 and 512``, the sizes of the transforms of outputs and inputs."""
        sizes = f"{transform_size(self.rows)} and {transform_size(self.columns)}"
        return f"2 bits   rotated by {sizes}{'   rescaled' if self.rescaled else ''}"

    def specification(self) -> dict[str, ValueType]:
        """Codes, one scale, the seeds of both rotations, and divisors where there are any."""
        found = {
            "codes": ValueType(dtype="i16", shape=(self.rows, self.codes)),
            "scale": ValueType(dtype="f16", shape=(1,)),
            "seeds": ValueType(dtype="i32", shape=(2,)),
        }
        if self.rescaled:
            found["rescale"] = ValueType(dtype="f16", shape=(self.columns,))
        return found

    def check(self, stored: Tensors, layer: str) -> None:
        """Compare with the specification; seeds and divisors must be such."""
        super().check(stored, layer)
        if bool((stored["seeds"] < 0).any()):
            raise InvalidArtifact("a seed is below 0", where=[layer])
        if self.rescaled and not bool((stored["rescale"] > 0).all()):
            raise InvalidArtifact("rescale holds a divisor that is not above 0", where=[layer])

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """The working form is the stored one."""
        return {suffix: tensor.contiguous() for suffix, tensor in working.items()}

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """The working form is the stored one."""
        return dict(stored)

    def dense(self, working: Tensors) -> Tensor:
        """Points, both transforms by additions alone, then one factor; fp32, columns first."""
        codes = working["codes"].long() & SIXTEEN
        points = lattice_points(codes).flatten(1)[:, : self.columns]
        mixed = walsh_hadamard(points, transform_size(self.columns))
        mixed = walsh_hadamard(mixed.T, transform_size(self.rows)).T
        inputs, outputs = working["seeds"].tolist()
        mixed = mixed * self.factor(working["scale"])
        mixed = mixed * random_signs(self.columns, inputs).to(mixed.device)
        mixed = mixed * random_signs(self.rows, outputs).to(mixed.device)[:, None]
        if self.rescaled:
            mixed = mixed / working["rescale"].float()
        return mixed.contiguous()

    def factor(self, scale: Tensor) -> float:
        """The scale over the norm of both transforms, rounded to fp32."""
        norm = math.sqrt(transform_size(self.rows) * transform_size(self.columns))
        return float(torch.tensor(float(scale) / norm, dtype=torch.float32))

    def relax(self, working: Tensors, weight: Tensor) -> RelaxedLattice:
        """The scale alone, which starts at the working tensors'."""
        one = torch.ones_like(working["scale"])
        return RelaxedLattice(working, self.dense({**working, "scale": one}))

    @staticmethod
    def stored_codes(codes: Tensor) -> Tensor:
        """Codes of 0 to 65535, i64, as the 16-bit numbers of the same bits."""
        return torch.where(codes > SIXTEEN // 2, codes - (SIXTEEN + 1), codes).to(torch.int16)
