"""Which positions a caller reads: a decoder gives the logits of these alone.

A step of decoding reads the open places of a block, and a masked loss the masked ones. What nobody
reads needs no logits, and nothing of the last block behind its keys and values. While positions are
asked for, a ``Decoder`` gives ``[positions, vocabulary]`` in place of ``[batch, T, vocabulary]``.
As a window, they belong to the running context and not to the module.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


class Asked:
    """Positions of a batch, some in each row."""

    def __init__(
        self, rows: Tensor, columns: Tensor, shape: torch.Size, *, states: bool = False
    ) -> None:
        """Take note of them.

        Args:
            rows: ``i64[positions]``, on the model's device.
            columns: ``i64[positions]``, of the tokens of the call.
            shape: of these tokens, batch and length.
            states: give what the last block gives, ``[positions, width]``, in place of logits.
        """
        self.rows, self.columns, self.states = rows, columns, states
        batch, length = shape
        counts = torch.bincount(rows, minlength=batch)
        most = int(counts.max()) if batch else 0
        self.narrows = most < length
        """Whether every row has positions that are not asked for."""
        if not self.narrows:
            return
        order = rows.argsort(stable=True)
        before = counts.cumsum(0) - counts
        self._slots = torch.empty_like(rows)
        self._slots[order] = torch.arange(len(rows), device=rows.device) - before[rows[order]]
        # Rows that ask for less than others have their first column once more.
        self._taken = torch.zeros(batch, most, dtype=torch.int64, device=rows.device)
        self._taken[rows, self._slots] = columns
        self._batch = torch.arange(batch, device=rows.device)[:, None]

    def narrow(self, values: Tensor) -> Tensor:
        """Those of each row side by side: ``[batch, T, ...] -> [batch, most, ...]``."""
        return values[self._batch, self._taken] if self.narrows else values

    def narrow_sight(self, visible: Tensor | None) -> Tensor | None:
        """Who of them sees whom, of ``bool[batch or 1, heads or 1, T or 1, seen]``."""
        if visible is None or not self.narrows or visible.shape[2] == 1:
            return visible
        every = visible.expand(len(self._taken), -1, -1, -1).transpose(1, 2)
        return self.narrow(every).transpose(1, 2)

    def pick(self, values: Tensor) -> Tensor:
        """What belongs to each position, of what ``narrow`` has given: ``[positions, ...]``."""
        return values[self.rows, self._slots if self.narrows else self.columns]


_CURRENT: ContextVar[Asked | None] = ContextVar("asked positions", default=None)
_LAST: ContextVar[Asked | None] = ContextVar("asked positions in the last block", default=None)


def current_asked() -> Asked | None:
    """The positions that are asked for, if some are; what is compiled or exported gives all."""
    return None if torch.compiler.is_compiling() else _CURRENT.get()


def asked_of_last() -> Asked | None:
    """The same while the last block runs: there it is that positions are left out."""
    return None if torch.compiler.is_compiling() else _LAST.get()


@contextmanager
def asking(asked: Asked) -> Iterator[None]:
    """Ask for positions."""
    token = _CURRENT.set(asked)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def last(asked: Asked) -> Iterator[None]:
    """Run the last block: behind its keys and values it goes on with these positions alone.

    It is not told by an argument, for its code is traced, and a trace takes every argument for a
    value.
    """
    token = _LAST.set(asked)
    try:
        yield
    finally:
        _LAST.reset(token)
