"""Keys or values of a text that are kept from call to call: as they were computed, or as codes.

Codes are those of ``RowQuantizer``: each head of each token has a symmetric grid of its own, with a
scale in fp16; two codes of 4 bits take a byte. What a call computes itself it sees as computed;
from the next call on it is read back from the codes.
"""

from typing import Protocol

import torch
from torch import Tensor

from qdc.numerics.rowquantizer import Bits, RowCodes, RowQuantizer


class Kept(Protocol):
    """What is kept of one text: ``[batch, T, heads, head_width]``, zeros where nothing was."""

    def write(self, rows: Tensor | slice, first: int, new: Tensor) -> None:
        """Keep columns from ``first`` on; ``rows`` of ``new`` alone."""

    def read(self, seen: int) -> Tensor:
        """All columns before ``seen``."""

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with these rows alone."""

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""

    @property
    def plain_nbytes(self) -> int:
        """Bytes that they would take as they were computed."""


class AsComputed:
    """Kept as it was computed."""

    def __init__(self, like: Tensor, length: int) -> None:
        """Keep ``length`` columns of such tensors."""
        self._values = like.new_zeros(like.shape[0], length, *like.shape[2:])

    def write(self, rows: Tensor | slice, first: int, new: Tensor) -> None:
        """See ``Kept``."""
        self._values[rows, first : first + new.shape[1]] = new[rows]

    def read(self, seen: int) -> Tensor:
        """See ``Kept``."""
        return self._values[:, :seen]

    def keep_rows(self, rows: Tensor) -> None:
        """See ``Kept``."""
        self._values = self._values[rows]

    @property
    def nbytes(self) -> int:
        """See ``Kept``."""
        return self._values.nbytes

    @property
    def plain_nbytes(self) -> int:
        """See ``Kept``."""
        return self._values.nbytes


class AsCodes:
    """Kept as codes of 8 or 4 bits."""

    def __init__(self, like: Tensor, length: int, bits: Bits) -> None:
        """Keep ``length`` columns of such tensors."""
        self._quantizer = RowQuantizer(bits, scales="f16")
        self._width, self._dtype = like.shape[-1], like.dtype
        empty = like.new_zeros(like.shape[0], length, *like.shape[2:], dtype=torch.int8)
        self._packed = self._quantizer.pack(empty)
        self._scales = like.new_zeros(*empty.shape[:-1], 1, dtype=torch.float16)

    def write(self, rows: Tensor | slice, first: int, new: Tensor) -> None:
        """See ``Kept``."""
        codes = self._quantizer.quantize(new[rows].float())
        columns = slice(first, first + new.shape[1])
        self._packed[rows, columns] = self._quantizer.pack(codes.codes)
        self._scales[rows, columns] = codes.scale.half()

    def read(self, seen: int) -> Tensor:
        """See ``Kept``."""
        codes = self._quantizer.unpack(self._packed[:, :seen], self._width)
        found = RowCodes(codes, self._scales[:, :seen].float(), None)
        return self._quantizer.dequantize(found).to(self._dtype)

    def keep_rows(self, rows: Tensor) -> None:
        """See ``Kept``."""
        self._packed, self._scales = self._packed[rows], self._scales[rows]

    @property
    def nbytes(self) -> int:
        """See ``Kept``."""
        return self._packed.nbytes + self._scales.nbytes

    @property
    def plain_nbytes(self) -> int:
        """See ``Kept``."""
        return self._scales.numel() * self._width * self._dtype.itemsize


def kept(like: Tensor, length: int, bits: Bits | None) -> Kept:
    """Room for ``length`` columns of tensors ``[batch, columns, heads, head_width]`` like this."""
    return AsComputed(like, length) if bits is None else AsCodes(like, length, bits)
