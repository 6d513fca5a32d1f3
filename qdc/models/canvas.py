"""Texts that end in a canvas: what stands before it is read causally, the canvas both ways.

The last columns of whatever a model is called with are its canvas, as many as it has; a text of no
more columns is canvas alone. What is finished is read as text, which ``as_text`` says. Nothing but
the number of columns is asked for, so that a graph, a stream and a sampler agree.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from qdc.models.layers import Attention
from qdc.models.window import Window

_AS_TEXT: ContextVar[bool] = ContextVar("as_text", default=False)


@contextmanager
def as_text() -> Iterator[None]:
    """Read all columns as text: there is no canvas."""
    token = _AS_TEXT.set(True)
    try:
        yield
    finally:
        _AS_TEXT.reset(token)


def canvas_start(columns: int, canvas: int) -> int:
    """The first column of the canvas; ``columns`` where there is none."""
    if not torch.compiler.is_compiling() and _AS_TEXT.get():
        return columns
    return max(0, columns - canvas)


def seen_columns(asks: Tensor, answers: Tensor, start: int, past: int | None) -> Tensor:
    """Which columns see which others, by their numbers alone.

    Text sees itself and the text before it. The canvas sees all of itself and the text, of which
    it sees as much as its first column would.

    Args:
        asks: columns that look, ``i64[n]``.
        answers: columns that are looked at, ``i64[m]``.
        start: first column of the canvas.
        past: columns of text that are seen, the one that looks included; None for all.

    Returns:
        ``bool[n, m]``.
    """
    edge = asks.clamp(max=start)[:, None]
    text = (answers < start) & (answers <= edge)
    if past is not None:
        text = text & (edge - answers < past)
    return text | ((asks[:, None] >= start) & (answers >= start))


class CanvasAttention(Attention):
    """Attention core over a text that ends in a canvas.

    Distances are counted in columns, so padding belongs in front of a text or behind all of it.
    Every column sees itself: one of padding would see nothing else, and give no number.
    """

    def __init__(self, canvas: int, past: int | None = None, scale: float | None = None) -> None:
        """Choose.

        Args:
            canvas: columns of the canvas.
            past: columns of text that one sees, itself included; None for all before it.
            scale: what scores are multiplied with; None for the usual one.
        """
        super().__init__()
        self.canvas, self.past, self.scale = canvas, past, scale

    def visible(self, query: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Who sees whom, ``bool[batch or 1, 1, T, T]``, or a mask of four axes as it was given.

        None where all see all: there is no text, and no padding.
        """
        if attention_mask is not None and attention_mask.dim() == 4:
            return attention_mask
        length = query.shape[1]
        shown = None if attention_mask is None else attention_mask.bool()
        return self._seen(range(length), range(length), shown, query.device)

    def visible_in(self, window: Window) -> Tensor | None:
        """The same while a window is in force; columns before its call are text.

        The call may not see columns behind it.
        """
        begin = 0 if window.keeps else window.first
        shown = None if window.shows_all else window.visible[:, begin : window.seen]
        asks, answers = range(window.first, window.last), range(begin, window.seen)
        return self._seen(asks, answers, shown, window.visible.device)

    def _seen(
        self, asks: range, answers: range, shown: Tensor | None, device: torch.device
    ) -> Tensor | None:
        """Which columns see which others, where these are ``shown``, ``bool[batch, answers]``."""
        start = asks.start + canvas_start(len(asks), self.canvas)
        near = self.past is None or start - answers.start < self.past
        if shown is None and start == asks.start and near:
            return None
        these, others = (
            torch.arange(each.start, each.stop, device=device) for each in (asks, answers)
        )
        seen = seen_columns(these, others, start, self.past)[None, None]
        if shown is None:
            return seen
        return (seen & shown[:, None, None, :]) | (these[:, None] == others)


class OnCanvas(nn.Module):
    """Takes one value on the canvas, and another one before it."""

    def __init__(self, canvas: int) -> None:
        super().__init__()
        self.canvas = canvas

    def forward(self, text: Tensor, canvas: Tensor) -> Tensor:
        """``[batch, T, width]`` each."""
        start = canvas_start(text.shape[1], self.canvas)
        return torch.cat((text[:, :start], canvas[:, start:]), dim=1)


class Scalars(nn.Module):
    """Multiplies with one number on the canvas, and with another one before it."""

    def __init__(self, canvas: int) -> None:
        super().__init__()
        self.width = canvas
        self.text, self.canvas = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, T, width]``, the same shape."""
        start = canvas_start(hidden.shape[1], self.width)
        behind = torch.arange(hidden.shape[1], device=hidden.device) >= start
        return hidden * torch.where(behind, self.canvas, self.text)[:, None]


class Signal(nn.Module):
    """What was predicted for each column before, as an embedding; zeros where nothing was."""

    def forward(self, embedded: Tensor, before: Tensor | None) -> Tensor:
        """``[batch, T, width]``, and the same or None."""
        return torch.zeros_like(embedded) if before is None else before


class SoftCap(nn.Module):
    """Bends logits, so that none is beyond the cap, in fp32."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, logits: Tensor) -> Tensor:
        """``[..., rows] -> f32[..., rows]``."""
        return (logits.float() / self.cap).tanh() * self.cap
