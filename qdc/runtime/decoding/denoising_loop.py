"""The loop of models that take noise out of a canvas: canvas after canvas, until an answer ends.

A canvas has the length that the model was trained with. What of the last one is beyond the length
that was asked for is computed and left out.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from qdc.models.predictions import require_finite
from qdc.numerics.noise import Places
from qdc.runtime.decoding.canvas import check_prompts
from qdc.runtime.decoding.denoising import Ending, Renoise, accepted, draw_draft, random_tokens
from qdc.runtime.decoding.denoising_reader import DenoisingReader
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.reader import Model
from qdc.runtime.decoding.results import Decoded, Snapshot, Watch, answers


@torch.no_grad()
def denoise(
    model: Model,
    prompts: Sequence[Sequence[int]],
    strategy: Renoise,
    options: DecodeOptions,
    facts: DecodeFacts,
    watch: Watch | None,
    seeds: Sequence[int],
) -> Decoded:
    """Write an answer to each prompt; arguments and result as those of ``decode``."""
    loop = DenoisingLoop(model, prompts, strategy, options, facts, seeds)
    started = time.perf_counter()
    loop.run(watch)
    seconds = time.perf_counter() - started
    tokens, reader = loop.shown(loop.tokens), loop.reader
    found = answers(tokens, options.length, facts.ends)
    kept = reader.cache_bytes, reader.cache_plain_bytes
    return Decoded(tokens, found, loop.written, loop.steps, reader.forwards, seconds, *kept)


class DenoisingLoop:
    """One run over a batch; rows are padded on the left, so that they share canvases."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        strategy: Renoise,
        options: DecodeOptions,
        facts: DecodeFacts,
        seeds: Sequence[int],
    ) -> None:
        """Lay the batch out. Raises ``QdcError`` for prompts that do not fit."""
        assert facts.canvas is not None, "another model has been refused"
        self.strategy, self.options, self.facts = strategy, options, facts
        self.seeds, self.size = list(seeds), facts.canvas
        whole = facts.computed(options.length)
        self.canvases = whole // self.size
        why = "" if whole == options.length else f", in whole canvases of {facts.canvas}"
        check_prompts(prompts, whole, facts, why)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        self.begin = int(lengths.max())
        """Column of the first token of all answers."""
        self.end = self.begin + options.length
        self.starts = self.begin - lengths
        column = torch.arange(self.begin + self.canvases * self.size)[None]
        visible = column >= self.starts[:, None]
        fill = 0 if facts.eos is None else facts.eos
        self.tokens = torch.full(visible.shape, fill)
        for row, prompt in enumerate(prompts):
            start = int(self.starts[row])
            self.tokens[row, start : self.begin] = torch.tensor(list(prompt), dtype=torch.int64)
        self.masked = visible & (column >= self.begin)
        self.reader = DenoisingReader(
            model, self.tokens, visible, self.size, options.cache, options.cache_bits
        )
        self.written = self.steps = 0

    def run(self, watch: Watch | None) -> None:
        """Write all canvases."""
        for number in range(self.canvases):
            if not len(self.reader.rows):
                return
            first = self.begin + number * self.size
            self.reader.begin(first)
            self._denoise(first, watch)
            self.written += len(self.reader.rows) * min(self.size, self.end - first)
            if self.options.stop_early:
                self._leave_out_what_is_behind(first + self.size)

    def shown(self, columns: Tensor) -> Tensor:
        """The columns ``[batch, T]`` of prompts and of answers as long as was asked for."""
        return columns[:, : self.end].clone()

    def _denoise(self, first: int, watch: Watch | None) -> None:
        """Write the canvas that begins with the column ``first``, in all rows that are left."""
        strategy, rows = self.strategy, self.reader.rows
        columns = slice(first, first + self.size)
        current = self._noise(first, "canvas", 0)
        before: Tensor | None = None
        ending, done = Ending(strategy), torch.zeros(len(rows), dtype=torch.bool)
        for step in range(strategy.denoising_steps):
            left = strategy.denoising_steps - step
            logits = self.reader.read(current, before)
            require_finite(logits.flatten(0, 1), "predicted")
            before = logits.div_(strategy.temperature(left))
            draft = draw_draft(before, strategy, self._places(first, step))
            sure = accepted(draft.entropy, strategy.entropy_bound)
            current = torch.where(sure, draft.tokens, self._noise(first, "noise", step))
            # A row that has ended keeps what it had then, whatever the others still do.
            kept = self.tokens[rows, columns]
            self.tokens[rows, columns] = torch.where(done[:, None], kept, draft.best)
            done = done | ending.after(draft) | torch.tensor(left == 1)
            self.masked[rows[done], columns] = False
            self.steps += 1
            if watch is not None:
                watch(self._snapshot())
            if bool(done.all()):
                return

    def _places(self, first: int, step: int) -> Places:
        """Places of the canvas in the rows that are left, row by row."""
        rows = self.reader.rows.tolist()
        starts = self.starts.tolist()
        seeds = [self.seeds[row] for row in rows for _ in range(self.size)]
        positions = [first - starts[row] + n for row in rows for n in range(self.size)]
        return Places(seeds, positions, step)

    def _noise(self, first: int, kind: str, step: int) -> Tensor:
        """A canvas of random tokens for each row that is left, ``i64[rows, canvas]``."""
        found = random_tokens(self._places(first, step), kind, self.facts.vocabulary)
        return found.view(-1, self.size)

    def _snapshot(self) -> Snapshot:
        tokens, masked = self.shown(self.tokens), self.shown(self.masked)
        return Snapshot(tokens, masked, self.steps, None, self.reader.forwards, drafts=True)

    def _leave_out_what_is_behind(self, last: int) -> None:
        """Close rows that hold an end between their prompt and the column ``last``."""
        rows, ends = self.reader.rows, torch.tensor(self.facts.ends, dtype=torch.int64)
        found = torch.isin(self.tokens[rows, self.begin : last], ends).any(1)
        for row in rows[found].tolist():
            self.tokens[row, last:] = self.facts.ends[0]
            self.masked[row] = False
        self.reader.keep_rows(~found)
