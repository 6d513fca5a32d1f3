"""A window on a longer text: the model computes some columns and attends over kept ones as well.

Models take whole texts. While a window is in force, the leaves that know of positions, ``Rotary``
and ``Attention``, ask it where the columns of this call stand and which keys and values there are
beside them. Nothing else of a model changes, and outside a window nothing changes at all. The
window belongs to the running context (``contextvars``), not to the module: two threads may decode
with one model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from qdc.models.kept import Kept, kept
from qdc.models.rotations import Frequencies, Rotation
from qdc.numerics.rowquantizer import Bits


class Window:
    """Columns ``first`` to ``last`` of a text whose keys and values are known up to ``seen``."""

    def __init__(
        self, positions: Tensor, visible: Tensor, *, keeps: bool, bits: Bits | None = None
    ) -> None:
        """Describe a text.

        Args:
            positions: ``i64[batch, T]``, the place of each column in its own row; anything at
                columns that are not visible.
            visible: ``bool[batch, T]``, False hides a column from all others.
            keeps: keep keys and values from call to call.
            bits: of their codes; None keeps them as they are computed.
        """
        self.positions = positions
        self.visible = visible
        self.keeps, self.bits = keeps, bits
        self.first, self.last, self.seen = 0, positions.shape[1], positions.shape[1]
        self._all_visible = bool(visible.all())
        self._writes: Tensor | None = None
        self._kept: dict[nn.Module, tuple[Kept, Kept]] = {}
        self._masks: dict[int | None, Tensor | None] = {}
        self._rotations: dict[tuple[Frequencies, torch.device], Rotation] = {}

    def move(self, first: int, last: int, seen: int, writes: Tensor | None = None) -> None:
        """The next call computes columns ``first`` to ``last``, and sees those before ``seen``.

        With ``writes``, ``bool[batch]``, it keeps keys and values of these rows alone; what it
        computes for the others is to be thrown away.
        """
        self.first, self.last, self.seen, self._writes = first, last, seen, writes
        self._masks, self._rotations = {}, {}

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with these rows alone, ``i64[kept]``."""
        self.positions, self.visible = self.positions[rows], self.visible[rows]
        self._all_visible = bool(self.visible.all())
        for pair in self._kept.values():
            for each in pair:
                each.keep_rows(rows)
        self._masks, self._rotations = {}, {}

    @property
    def shows_all(self) -> bool:
        """Whether no column is hidden from the others."""
        return self._all_visible

    def places(self) -> Tensor:
        """Positions of the columns of this call, ``i64[batch, last - first]``."""
        return self.positions[:, self.first : self.last]

    def rotation(self, frequencies: Frequencies, device: torch.device) -> Rotation:
        """Cosines and sines at these positions, ``f32[batch, last - first, 1, pairs]`` each."""
        asked = frequencies, device
        if asked not in self._rotations:
            places = self.places().to(device, torch.float32)
            self._rotations[asked] = frequencies.rotation(places)
        return self._rotations[asked]

    def extend(self, leaf: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what ``leaf`` has computed, ``[batch, last - first, heads, head_width]``.

        Returns:
            Keys and values of all columns before ``seen``, those of this call as computed. Keys are
            kept after rotation, for a column never moves.
        """
        if not self.keeps:
            return key, value
        if leaf not in self._kept:
            length = self.positions.shape[1]
            self._kept[leaf] = kept(key, length, self.bits), kept(value, length, self.bits)
        keys, values = self._kept[leaf]
        return self._through(keys, key), self._through(values, value)

    def _through(self, held: Kept, new: Tensor) -> Tensor:
        """Keep the columns of this call, and give all that are seen."""
        held.write(slice(None) if self._writes is None else self._writes, self.first, new)
        if self.bits is None:
            return held.read(self.seen)
        if (self.first, self.last) == (0, self.seen):
            return new
        whole = held.read(self.seen)
        whole[:, self.first : self.last] = new
        return whole

    @property
    def kept_bytes(self) -> tuple[int, int]:
        """Bytes that are kept, and what they would be as computed."""
        each = [one for pair in self._kept.values() for one in pair]
        return sum(one.nbytes for one in each), sum(one.plain_nbytes for one in each)

    def mask(self, block: int | None) -> Tensor | None:
        """Who sees whom, ``bool[batch, 1, 1 or columns, seen]``; None where all see all."""
        if block not in self._masks:
            self._masks[block] = self._mask(block)
        return self._masks[block]

    def _mask(self, block: int | None) -> Tensor | None:
        begin = 0 if self.keeps else self.first
        hidden = None if self._all_visible else self.visible[:, None, None, begin : self.seen]
        if block is None:
            return hidden
        number = self.positions // block
        asks, answers = number[:, self.first : self.last], number[:, begin : self.seen]
        earlier = (asks[:, :, None] >= answers[:, None, :])[:, None]
        return earlier if hidden is None else earlier & hidden


_CURRENT: ContextVar[Window | None] = ContextVar("window", default=None)


def current_window() -> Window | None:
    """The window in force, if there is one; what is compiled or exported takes whole texts."""
    return None if torch.compiler.is_compiling() else _CURRENT.get()


@contextmanager
def through(window: Window) -> Iterator[None]:
    """Put a window in force."""
    token = _CURRENT.set(window)
    try:
        yield
    finally:
        _CURRENT.reset(token)
