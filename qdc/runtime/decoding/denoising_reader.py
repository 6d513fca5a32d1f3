"""The model as the denoising loop calls it: logits of a canvas behind a text.

Text is read causally and never sees the canvas, so its keys and values may be kept from step to
step, and what is computed stays the same; only the canvas is computed anew.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from qdc.errors import UnsupportedModel
from qdc.models.layers import takes_windows
from qdc.models.predictions import device_of
from qdc.models.window import Window, through
from qdc.runtime.decoding.reader import code_bits


class CanvasModel(Protocol):
    """A model that takes noise out of the end of a text."""

    def __call__(
        self, tokens: Tensor, mask: Tensor | None = None, *, before: Tensor | None
    ) -> Tensor:
        """Predict the tokens of a canvas, the last columns of each row.

        Args:
            tokens: ``i64[rows, T]``, a text and a canvas.
            mask: ``bool[rows, T]``, False hides padding on the left; None hides nothing.
            before: logits of the step before over its temperature, ``f32[rows, canvas,
                vocabulary]``, by which the model conditions itself; None in the first step.

        Returns:
            Logits ``f32[rows, T, vocabulary]``; those of the text mean nothing.
        """


class DenoisingReader:
    """Calls the model for the rows of a batch that are not finished."""

    def __init__(
        self,
        model: Callable[..., Tensor],
        tokens: Tensor,
        visible: Tensor,
        canvas: int,
        cache: str,
        bits: int | None = None,
    ) -> None:
        """Prepare a batch.

        Args:
            model: a ``CanvasModel``.
            tokens: ``i64[batch, T]``, read at each call up to the canvas in work.
            visible: ``bool[batch, T]``, no padding.
            canvas: tokens of a canvas.
            cache: ``none``, or ``prefix`` to keep keys and values of the text.
            bits: 8 or 4, of the codes in which they are kept; None as computed.

        Raises:
            UnsupportedModel: the model cannot be computed in parts, and the cache asks for it.
        """
        self.model, self.tokens, self.visible, self.canvas = model, tokens, visible, canvas
        self.rows = torch.arange(len(tokens))
        self.device = device_of(model)
        self.forwards = self.cache_bytes = self.cache_plain_bytes = 0
        self._first = self._kept = 0
        self._window: Window | None = None
        if cache == "none":
            return
        if not takes_windows(model):
            raise UnsupportedModel(
                f"the cache {cache!r} needs a model that is computed in parts, and this one is not",
                help="take --cache none; models of the families here (qdc families) have caches",
            )
        positions = (visible.cumsum(1) - 1).clamp(min=0).to(self.device)
        seen = visible.to(self.device)
        self._window = Window(positions, seen, keeps=True, bits=code_bits(bits))

    def keep_rows(self, kept: Tensor) -> None:
        """Go on with these of the rows, ``bool[rows]``."""
        if bool(kept.all()):
            return
        if self._window is not None:
            self._window.keep_rows(kept.to(self.device))
        self.rows = self.rows[kept]

    def begin(self, first: int) -> None:
        """Turn to the canvas that begins with the column ``first``; what is before it is text."""
        self._first = first
        if self._window is None or first == self._kept:
            return
        text = self.tokens[self.rows, self._kept : first].to(self.device)
        self._window.move(self._kept, first, first)
        with through(self._window):
            self.model.encode(text)  # type: ignore[attr-defined]
        self._kept = first
        self.forwards += 1
        self._note_cache()

    def read(self, canvas: Tensor, before: Tensor | None) -> Tensor:
        """Predict the canvas in work.

        Args:
            canvas: ``i64[rows, canvas]``.
            before: as a ``CanvasModel`` takes it.

        Returns:
            Logits ``f32[rows, canvas, vocabulary]`` on the model's device, which are the caller's.
        """
        self.forwards += 1
        first, last = self._first, self._first + self.canvas
        if self._window is not None:
            self._window.move(first, last, last)
            with through(self._window):
                found: Tensor = self.model(canvas.to(self.device), before=before)
            self._note_cache()
            return found.float()
        text = torch.cat((self.tokens[self.rows, :first], canvas), 1).to(self.device)
        visible = self.visible[self.rows, :last]
        mask = None if bool(visible.all()) else visible.to(self.device)
        return self.model(text, mask, before=before)[:, first:].float().clone()

    def _note_cache(self) -> None:
        assert self._window is not None
        held, plain = self._window.kept_bytes
        self.cache_bytes = max(self.cache_bytes, held)
        self.cache_plain_bytes = max(self.cache_plain_bytes, plain)
