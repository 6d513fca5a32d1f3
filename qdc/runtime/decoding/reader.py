"""The model as the loop calls it: predictions of single places, whatever is cached or padded.

Caches follow Fast-dLLM (ecosystem B.3). At the start of a block everything is computed once and all
keys and values are kept; the further steps of the block compute less:

- ``prefix`` computes the block and what is behind it, with the kept prefix;
- ``dual`` computes the block alone, with the kept prefix and suffix.

In a bidirectional model both are approximations, for what is kept has seen an older text. In a
block-causal one nothing sees later blocks, so the text behind the block is left out, finished
blocks are never computed again, and ``prefix`` is exact; so is ``dual`` if the block is a whole
attention block.

What is kept may be kept as codes of 8 or 4 bits; what a call computes itself it sees as computed.

Where logits are shifted, the place that predicts the first token of a block stands in front of it.
A window begins with the block once that token is decided, as in Fast-dLLM. While it is open, it
begins one column earlier; ``dual`` in a part of an attention block computes the whole of that then,
as v2 does. Rows that differ in that are computed in two calls, so that none depends on another.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from qdc.errors import UnsupportedModel
from qdc.models.layers import takes_windows
from qdc.models.predictions import Logits, answers_asked, device_of, logits_at, require_finite
from qdc.models.window import Window, through
from qdc.numerics.products import has_matrices, wide_products
from qdc.numerics.rowquantizer import Bits
from qdc.runtime.decoding.canvas import Canvas
from qdc.runtime.decoding.facts import DecodeFacts

ROUNDING = 1e-5
"""Relative difference of logits below which places of a text of masks alone count as equal, in a
model of which is not known what its attention knows."""

Model = Callable[..., Tensor]
"""``(tokens i64[batch, T], mask bool[batch, T] or nothing) -> [batch, T, vocabulary]``.

A module whose leaves take windows, as those of the families here, may be called in parts; of other
modules and functions whole texts are asked.
"""


class Predicts(Protocol):
    """What the loop reads predictions from: a ``Reader``, or a model that is streamed."""

    canvas: Canvas
    cache: str
    rows: Tensor
    """``i64[rows]``: those that are not finished."""
    forwards: int
    """Calls of the model so far."""

    def keep_rows(self, kept: Tensor) -> None:
        """Go on with these of the rows, ``bool[rows]``."""

    def begin(self, first: int, last: int) -> None:
        """Turn to the block of columns ``first`` to ``last``."""

    def parts(self, rows: Tensor, columns: Tensor) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Predict single places of the block, some at a time.

        Args:
            rows: among those that are left, ``i64[places]``.
            columns: ``i64[places]``.

        Yields:
            Which of the places, and logits ``f64[n, vocabulary]`` for them, which are the caller's.
        """


class Reader:
    """Calls the model for the rows of a canvas that are not finished."""

    def __init__(
        self,
        model: Model,
        canvas: Canvas,
        facts: DecodeFacts,
        cache: str,
        guidance: float,
        bits: int | None = None,
    ) -> None:
        """Prepare a batch.

        Args:
            model: what to call.
            canvas: the batch; tokens are read from it at each call.
            facts: of the model.
            cache: ``none``, ``prefix`` or ``dual``.
            guidance: weight of classifier-free guidance, 0 is without.
            bits: 8 or 4, of the codes in which keys and values are kept; None as computed.

        Raises:
            UnsupportedModel: the model cannot be computed in parts, and the cache asks for it.
        """
        self.model, self.canvas, self.facts = model, canvas, facts
        self.cache, self.guidance = cache, guidance
        self.forwards = 0
        self.cache_bytes = self.cache_plain_bytes = 0
        """Most bytes of keys and values that were kept, and what they would be as computed."""
        self.bits = code_bits(bits)
        self.rows = torch.arange(len(canvas.tokens))
        self.device = device_of(model)
        # What calls a module says itself how it multiplies, and being asked twice would cost.
        self._multiplies = not hasattr(model, "module") and has_matrices(model)
        self._given = canvas.visible & ~canvas.masked
        self._windowed = takes_windows(model)
        self._asks = answers_asked(model)
        if cache != "none" and not self._windowed:
            raise UnsupportedModel(
                f"the cache {cache!r} needs a model that is computed in parts, and this one is not",
                help="take --cache none; models of the families here (qdc families) have caches",
            )
        self._window: Window | None = None
        if self._windowed and (cache != "none" or not bool(canvas.visible.all())):
            self._window = self._new_window()
        self._first = self._last = 0
        self._fresh, self._final = True, 0
        # Rows of a block-causal model whose attention block has its first token from the call in
        # hand, which finishes the block in front of it: their own block is computed in the next.
        self._again = torch.zeros(0, dtype=torch.bool)

    def keep_rows(self, kept: Tensor) -> None:
        """Go on with these of the rows, ``bool[rows]``."""
        if bool(kept.all()):
            return
        if self._window is not None:
            both = torch.cat((kept, kept)) if self.guidance else kept
            self._window.keep_rows(both.to(self.device))
        self.rows = self.rows[kept]

    def begin(self, first: int, last: int) -> None:
        """Turn to the block of columns ``first`` to ``last``."""
        self._first, self._last, self._fresh = first, last, True

    def parts(self, rows: Tensor, columns: Tensor) -> Iterator[tuple[Tensor | slice, Tensor]]:
        """Predict single places of the block, all in one part."""
        yield slice(None), self.read(rows, columns)

    def read(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Predict single places of the block.

        Args:
            rows: among those that are left, ``i64[places]``.
            columns: ``i64[places]``.

        Returns:
            Logits ``f64[places, vocabulary]`` on the model's device.

        Raises:
            QdcError: logits are not finite.
        """
        tokens = self.canvas.tokens[self.rows]
        if self.guidance:
            hidden = tokens.masked_fill(self._given[self.rows], self.facts.mask)
            tokens = torch.cat((tokens, hidden))
        shifted = self.canvas.positions[self.rows[rows], columns] > 0
        columns = columns - self.facts.logits_shift * shifted
        wide = self._wide_rows(rows[columns < self._first])
        some = bool(wide.any())
        if self._fresh or not some or bool(wide.all()) or self._one_extent():
            found = self._call(tokens, rows, columns, wide=some)
        else:
            narrow = self._call(tokens, rows, columns, wide=False, kept=~wide)
            found = self._call(tokens, rows, columns, wide=True, kept=wide)
            found = torch.where(wide[rows, None].to(self.device), found, narrow)
        self._fresh = False
        return found

    def _one_extent(self) -> bool:
        """Whether a call computes the same for all rows, wide or not."""
        return self._extent(wide=True) == self._extent(wide=False)

    def _wide_rows(self, asking: Tensor) -> Tensor:
        """Rows whose call begins in front of the block, ``bool[rows]``.

        They ask for its first token, or have nothing kept of their attention block.
        """
        found = torch.zeros(len(self.rows), dtype=torch.bool)
        found[asking] = True
        grid = self.facts.attention_block
        if not self._fresh:
            found, self._again = found | self._again, torch.zeros_like(found)
        elif self.cache == "dual" and grid is not None and self._first % grid == 0:
            self._again = found
        else:
            self._again = torch.zeros_like(found)
        return found

    def _call(
        self,
        tokens: Tensor,
        rows: Tensor,
        columns: Tensor,
        *,
        wide: bool,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Call the model once; ``wide`` includes the column in front of the block.

        With ``kept``, ``bool[rows]``, keys and values of these rows alone are kept, and what is
        given for the others means nothing.
        """
        self.forwards += 1
        first, last, seen = self._extent(wide=wide)
        with wide_products(self.device, needed=self._multiplies):
            if self._window is not None:
                if kept is not None:
                    kept = (torch.cat((kept, kept)) if self.guidance else kept).to(self.device)
                columns = (columns - first).clamp(min=0)
                found = self._through_window(tokens, (first, last, seen), kept, rows, columns)
            elif bool(self.canvas.visible.all()):
                found = self._picked(self.model, tokens[:, :seen], rows, columns)
            else:
                columns = columns - self.canvas.starts[self.rows[rows]]
                found = self._picked(self._flush_left, tokens, rows, columns)
        return self._alike(found, rows)

    def _picked(self, model: Logits, tokens: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits ``f64[places, vocabulary]`` of a call of the model, guided if asked for."""
        if self.guidance:
            rows, columns = torch.cat((rows, rows + len(self.rows))), torch.cat((columns, columns))
        asks = self._asks and model is self.model
        found = logits_at(model, tokens.to(self.device), rows, columns, asks=asks).double()
        require_finite(found)
        if self.guidance:
            found, without = found.chunk(2)
            found = without + (self.guidance + 1) * (found - without)
        return found

    def _alike(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Give all places of a text of masks alone the logits of its first one.

        Nothing tells its places apart where attention knows distances alone, for it mixes equal
        values. What still differs is rounding, which differs from batch to batch as well; without
        it the strategies see a tie, and decide it by position.
        """
        written = self.canvas.tokens[self.rows] != self.facts.mask
        empty = ~(written & self.canvas.visible[self.rows]).any(1)
        for row in empty.nonzero().flatten().tolist():
            places = (rows == row).nonzero().flatten().to(logits.device)
            if not len(places):
                continue
            first = logits[places[:1]]
            allowed = ROUNDING * float(first.abs().max())
            if self._windowed or float((logits[places] - first).abs().max()) <= allowed:
                logits = logits.index_copy(0, places, first.expand(len(places), -1))
        return logits

    def _extent(self, *, wide: bool) -> tuple[int, int, int]:
        """First column and end of what is computed, and the end of what that sees."""
        grid, end = self.facts.attention_block, self.canvas.tokens.shape[1]
        start = 0
        if grid is not None:
            start, end = self._first // grid * grid, min(end, -(-self._last // grid) * grid)
        before = self._first - 1 if wide else self._first
        if self.cache == "none":
            return 0, end, end
        if self._fresh:
            first = 0 if grid is None else min(self._final, before)
            self._final = start
            return first, end, end
        if self.cache == "dual" and (grid is None or not wide):
            return before, self._last, end
        return (before if grid is None else min(start, before)), end, end

    def _through_window(
        self,
        tokens: Tensor,
        extent: tuple[int, int, int],
        kept: Tensor | None,
        rows: Tensor,
        columns: Tensor,
    ) -> Tensor:
        assert self._window is not None
        first, last, _ = extent
        self._window.move(*extent, kept)
        with through(self._window):
            found = self._picked(self.model, tokens[:, first:last], rows, columns)
        held, plain = self._window.kept_bytes
        self.cache_bytes = max(self.cache_bytes, held)
        self.cache_plain_bytes = max(self.cache_plain_bytes, plain)
        return found

    def _flush_left(self, tokens: Tensor) -> Tensor:
        """Call a model that takes whole texts: its rows begin at 0, the padding is behind them."""
        copies = 2 if self.guidance else 1
        starts = self.canvas.starts[self.rows].repeat(copies)[:, None]
        column = (torch.arange(tokens.shape[1])[None] + starts) % tokens.shape[1]
        mask = self.canvas.visible[self.rows].repeat(copies, 1).gather(1, column)
        return self.model(tokens.gather(1, column.to(self.device)), mask.to(self.device))

    def _new_window(self) -> Window:
        copies = 2 if self.guidance else 1
        positions = self.canvas.positions[self.rows].repeat(copies, 1).to(self.device)
        visible = self.canvas.visible[self.rows].repeat(copies, 1).to(self.device)
        return Window(positions, visible, keeps=self.cache != "none", bits=self.bits)


def code_bits(bits: int | None) -> Bits | None:
    """Bits of the codes that keys and values are kept in, as options give them."""
    return None if bits is None else 8 if bits == 8 else 4
