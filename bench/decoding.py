"""What strategies and caches cost and change on one model: tables for docs/decoding.md.

    python -m bench.decoding OUT --against MODEL --text held.jsonl --blocks 8 16 32
    python -m bench.decoding OUT --against MODEL --text held.jsonl --strategies random entropy
    python -m bench.decoding OUT --against MODEL --text held.jsonl --blocks 16 --bits 8 4

Prompts are beginnings of windows of held-out text, answered one at a time. A cache is judged twice:
step by step, where it sees the very states of the run without a cache (how often both would write
the same token, and the divergence of the cached from the exact distribution), and by its own
answers (tokens that are those of the run without a cache, and the cross-entropy of the uncompiled
model on the masked half of an answer, with the prompt in front and the same masks for all).
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from bench.common.clocks import Stopwatch
from bench.common.markdown import header, row
from bench.common.samples import held_out
from qdc.cli.models import Opened, open_runnable
from qdc.evaluation.masked_loss import ratio_mask
from qdc.models.predictions import predictions
from qdc.pipeline.strategybase import Stepwise
from qdc.runtime.decoding.canvas import Canvas, lay_out
from qdc.runtime.decoding.llada import LowConfidence
from qdc.runtime.decoding.loop import Loop, decode
from qdc.runtime.decoding.options import CACHE_BITS, CACHES, DecodeOptions
from qdc.runtime.decoding.reader import Reader
from qdc.runtime.decoding.results import Decoded
from qdc.runtime.decoding.strategies import STRATEGIES, make_strategy

PROMPT, LENGTH, BLOCK = 64, 32, 16
COLUMNS = (
    "strategy", "block", "cache", "kept", "forwards", "CPU s", "top-1", "KL", "same tokens", "CE",
)  # fmt: skip
OTHERS = tuple(
    kind.name for kind in STRATEGIES if issubclass(kind, Stepwise) and kind is not LowConfidence
)


class Shadowed(Reader):
    """Reads without a cache, and compares what a reader with one would have read."""

    def __init__(self, model: Opened, canvas: Canvas, options: DecodeOptions) -> None:
        super().__init__(model.module, canvas, model.decoding, "none", 0.0)
        bits = options.cache_bits
        self.other = Reader(model.module, canvas, model.decoding, options.cache, 0.0, bits)
        self.same, self.divergence, self.places = 0.0, 0.0, 0

    def begin(self, first: int, last: int) -> None:
        """Turn both to a block."""
        super().begin(first, last)
        self.other.begin(first, last)

    def read(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Read both, and give what is exact; the whole first step of a block does not count."""
        whole = self._fresh
        exact, kept = super().read(rows, columns), self.other.read(rows, columns)
        if whole:
            return exact
        self.same += float((exact.argmax(1) == kept.argmax(1)).sum())
        p, q = exact.log_softmax(1), kept.log_softmax(1)
        self.divergence += float((p.exp() * (p - q)).sum())
        self.places += len(rows)
        return exact


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both sides of every cache and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--blocks", type=int, nargs="*", default=[8, 16, 32])
    parser.add_argument("--bits", type=int, nargs="*", default=[], choices=CACHE_BITS)
    parser.add_argument("--strategies", nargs="*", default=[], choices=OTHERS)
    given = parser.parse_args(arguments)
    model, judge = (open_runnable(path, "cpu", []) for path in (given.model, given.against))
    windows = held_out(given.model, given.prompts, given.text, PROMPT + LENGTH)
    print(f"{len(windows)} prompts of {PROMPT} tokens, {LENGTH} new ones; the text itself has a")
    print(f"cross-entropy of {judged(judge, windows):.2f}\n")
    print(header(COLUMNS, left=3))
    chosen = by_strategy(given.strategies) if given.strategies else by_block(given.blocks)
    for options in with_bits(chosen, given.bits):
        if options.cache == "none":
            plain = found = run(model, windows, options)
        else:
            found = run(model, windows, options)
        steps = shadow(model, windows, options) if options.cache != "none" else ("", "")
        print(row(cells(options, found, plain, steps, judge)), flush=True)


def by_block(blocks: list[int]) -> Iterator[DecodeOptions]:
    """LLaDA's strategy in blocks of every size."""
    for block in blocks:
        yield from with_caches({"block": block})


def by_strategy(strategies: list[str]) -> Iterator[DecodeOptions]:
    """Strategies in blocks of one size."""
    for strategy in strategies:
        fields: dict[str, object] = {"block": BLOCK, "strategy": strategy}
        if strategy in ("threshold", "dynamic"):
            fields["threshold"] = 0.3
        if strategy == "dynamic":
            fields["steps"] = LENGTH // 2
        yield from with_caches(fields)


def with_bits(chosen: Iterator[DecodeOptions], bits: list[int]) -> Iterator[DecodeOptions]:
    """Each cache as computed, and then as codes."""
    for options in chosen:
        yield options
        for each in bits if options.cache != "none" else ():
            yield options.model_copy(update={"cache_bits": each})


def with_caches(fields: dict[str, object]) -> Iterator[DecodeOptions]:
    for cache in CACHES:
        given = {"length": LENGTH, "cache": cache, "stop_early": False, **fields}
        yield DecodeOptions.model_validate(given)


def run(model: Opened, windows: Tensor, options: DecodeOptions) -> Decoded:
    """Answer the beginnings of the windows, one at a time as a person would ask.

    Seconds are those of the processor: other work on the machine does not count.
    """
    prompts = windows[:, :PROMPT].tolist()
    with Stopwatch() as watch:
        each = [decode(model.module, [prompt], options, model.decoding) for prompt in prompts]
    return Decoded(
        tokens=torch.cat([one.tokens for one in each]),
        answers=[answer for one in each for answer in one.answers],
        written=sum(one.written for one in each),
        steps=sum(one.steps for one in each),
        forwards=sum(one.forwards for one in each),
        seconds=watch.processor,
        cache_bytes=max(one.cache_bytes for one in each),
        cache_plain_bytes=max(one.cache_plain_bytes for one in each),
    )


@torch.no_grad()
def shadow(model: Opened, windows: Tensor, options: DecodeOptions) -> tuple[str, str]:
    """Top-1 agreement and divergence, nats a place, on the states of the run without a cache."""
    same = divergence = places = 0.0
    for prompt in windows[:, :PROMPT].tolist():
        canvas = lay_out([prompt], options.length, options.block, model.decoding, [options.seed])
        reader = Shadowed(model, canvas, options)
        strategy = make_strategy(options)
        assert isinstance(strategy, Stepwise)
        Loop(reader, strategy, options, model.decoding, stops=False).run(None)
        same, divergence = same + reader.same, divergence + reader.divergence
        places += reader.places
    return f"{100 * same / places:.1f} %", f"{divergence / places:.3f}"


@torch.no_grad()
def judged(judge: Opened, tokens: Tensor) -> float:
    """Cross-entropy, nats a token, of the masked half of the answers."""
    masked = ratio_mask(len(tokens), tokens.shape[1], 0.5, 0)
    masked[:, :PROMPT] = False
    logits = judge(tokens.masked_fill(masked, judge.facts.mask))
    found = predictions(logits, masked, judge.logits_shift)
    return float(functional.cross_entropy(found, tokens[masked]))


def cells(
    options: DecodeOptions, found: Decoded, plain: Decoded, steps: tuple[str, str], judge: Opened
) -> tuple[str, ...]:
    """One line of the table."""
    same = (found.tokens == plain.tokens)[:, PROMPT:].double().mean()
    codes = "" if options.cache_bits is None else f" {options.cache_bits} bits"
    held = f"{found.cache_bytes / 1000:.0f} kB" if found.cache_bytes else ""
    name = (options.strategy, str(options.block), options.cache + codes, held)
    kept = "" if options.cache == "none" else f"{100 * same:.1f} %"
    entropy = f"{judged(judge, found.tokens):.2f}"
    return (*name, str(found.forwards), f"{found.seconds:.1f}", *steps, kept, entropy)


if __name__ == "__main__":
    main()
