"""The codec of QuIP#: points of the E8P lattice, in coordinates that random rotations have mixed.

``docs/format.md`` specifies it.
"""

from typing import ClassVar

import torch
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.codec import Tensors
from qdc.format.rotatedcode import RotatedCode
from qdc.ir.types import ValueType
from qdc.numerics.lattice import SIZE, lattice_points

SIXTEEN = 0xFFFF


class LatticeCode(RotatedCode):
    """W = scale * S_r H_r P H_c S_c / rescale, with P made of points of eight columns."""

    name: ClassVar[str] = "e8p"

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

    def text(self) -> str:
        """``2 bits   rotated by 64 and 512``, the sizes of the transforms of outputs and inputs."""
        return f"2 bits   {self.rotation_text}{'   rescaled' if self.rescaled else ''}"

    def specification(self) -> dict[str, ValueType]:
        """Codes, one scale, the seeds of both rotations, and divisors where there are any."""
        codes = ValueType(dtype="i16", shape=(self.rows, self.codes))
        found = {"codes": codes, **self.rotation()}
        if self.rescaled:
            found["rescale"] = ValueType(dtype="f16", shape=(self.columns,))
        return found

    def check(self, stored: Tensors, layer: str) -> None:
        """Compare with the specification; seeds and divisors must be such."""
        super().check(stored, layer)
        if self.rescaled and not bool((stored["rescale"] > 0).all()):
            raise InvalidArtifact("rescale holds a divisor that is not above 0", where=[layer])

    def points(self, codes: Tensor) -> Tensor:
        """Eight columns to a code; what reaches beyond the last column is dropped."""
        return lattice_points(codes.long() & SIXTEEN).flatten(1)[:, : self.columns]

    def dense(self, working: Tensors) -> Tensor:
        """As of all rotated codes, divided where there are divisors."""
        mixed = super().dense(working)
        return mixed / working["rescale"].float() if self.rescaled else mixed

    @staticmethod
    def stored_codes(codes: Tensor) -> Tensor:
        """Codes of 0 to 65535, i64, as the 16-bit numbers of the same bits."""
        return torch.where(codes > SIXTEEN // 2, codes - (SIXTEEN + 1), codes).to(torch.int16)
