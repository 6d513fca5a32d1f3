"""Fill places in the midst of texts, by the loop and the strategies that write answers."""

import time
from collections.abc import Sequence

import torch

from qdc.errors import QdcError
from qdc.pipeline.strategybase import Stepwise
from qdc.runtime.decoding.canvas import block_size, lay_out_gaps
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.loop import Loop, row_seeds
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.reader import Model, Reader
from qdc.runtime.decoding.results import Decoded, Watch
from qdc.runtime.decoding.strategies import BUILT_IN, Strategies, check_canvas, make_strategy


@torch.no_grad()
def fill(
    model: Model,
    texts: Sequence[Sequence[int]],
    gaps: Sequence[Sequence[bool]],
    options: DecodeOptions,
    facts: DecodeFacts,
    watch: Watch | None = None,
    seeds: Sequence[int] | None = None,
    strategies: Strategies = BUILT_IN,
) -> Decoded:
    """Fill the gaps of each text; what stands around them is seen, and stays.

    Blocks are counted from the beginning of the text. A token that ends an answer ends nothing
    here: the text goes on behind it.

    Args:
        model: as for ``decode``.
        texts: token ids, all of one length; those in gaps count for nothing.
        gaps: for each text, which of its tokens are to be filled; ``options.length`` of them.
        options: strategy, steps, noise and the rest.
        facts: of the model and its tokenizer.
        watch: called after each step, as by ``decode``.
        seeds: one a text, in place of ``options.seed``.
        strategies: where the strategy's name is looked up.

    Returns:
        The whole texts, and as answers what was filled in, in the order of the text.

    Raises:
        QdcError: a text, its gaps, an option or the model does not fit; says what to do.
    """
    options = options.settled(facts.usual)
    _check(texts, gaps, options, facts)
    strategy, mask = make_strategy(options, strategies), facts.mask
    check_canvas(strategy, facts)
    if not isinstance(strategy, Stepwise):
        raise QdcError(
            f"{strategy.name} writes behind a prompt from left to right, and a gap has text behind "
            "it",
            help="take another strategy, as threshold",
        )
    canvas = lay_out_gaps(
        torch.tensor([list(text) for text in texts], dtype=torch.int64),
        torch.tensor([list(gap) for gap in gaps], dtype=torch.bool),
        block_size(options.block, facts.attention_block),
        mask,
        row_seeds(texts, options, seeds),
    )
    reader = Reader(model, canvas, facts, options.cache, options.cfg, options.cache_bits)
    loop = Loop(reader, strategy, options, facts, stops=False)
    started = time.perf_counter()
    loop.run(watch)
    seconds = time.perf_counter() - started
    filled = [
        [token for token, open_ in zip(row, gap, strict=True) if open_]
        for row, gap in zip(canvas.tokens.tolist(), gaps, strict=True)
    ]
    kept = reader.cache_bytes, reader.cache_plain_bytes
    counts = loop.written, loop.steps, reader.forwards
    return Decoded(canvas.tokens, filled, *counts, seconds, *kept)


def _check(
    texts: Sequence[Sequence[int]],
    gaps: Sequence[Sequence[bool]],
    options: DecodeOptions,
    facts: DecodeFacts,
) -> None:
    if not texts:
        raise QdcError("found no text to fill", help="give one text or more")
    length = len(texts[0])
    if any(len(row) != length for row in (*texts, *gaps)) or len(texts) != len(gaps):
        raise QdcError(
            "texts and gaps that are filled together have one length",
            help="give one mark a token, and fill texts of another length in another call",
        )
    if length > facts.max_length:
        raise QdcError(
            f"the text has {length} tokens, the model takes {facts.max_length}",
            help="shorten the text or the gaps",
        )
    counts = {sum(gap) for gap in gaps}
    if counts != {options.length}:
        raise QdcError(
            f"found gaps of {' and '.join(map(str, sorted(counts)))} tokens, and a length of "
            f"{options.length}",
            help="length is the number of tokens that are filled in each text",
        )
    if not options.stop_early:
        raise QdcError("stop_early is about answers, and a gap ends nothing", help="leave it out")
    outside = [token for text in texts for token in text if not 0 <= token < facts.vocabulary]
    if outside:
        raise QdcError(
            f"found token {outside[0]}, and the model knows {facts.vocabulary} tokens",
            help="use the tokenizer of this model",
        )
