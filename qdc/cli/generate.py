"""``qdc generate``: write an answer, and show how it unmasks."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from rich.live import Live
from rich.text import Text

from qdc.cli.models import Opened, open_runnable
from qdc.cli.prompts import Asked, prompt_tokens, read_prompt
from qdc.cli.terminal import console, print_json, progress
from qdc.pipeline.registry import standard_registry
from qdc.runtime.decoding.loop import check_verifier, decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.results import Decoded, Snapshot, Watch
from qdc.runtime.decoding.strategies import check_canvas, make_strategy
from qdc.runtime.decoding.verifier import load_verifier
from qdc.runtime.options import RunOptions
from qdc.units import size

VEIL = "░"
"""A place that is not decided yet."""
FRAMES = 12
"""A second, at most."""


def generate_command(
    model: Path,
    asked: Asked,
    options: DecodeOptions,
    running: RunOptions,
    *,
    verifier: Path | None,
    as_json: bool,
) -> None:
    """Load, decode, print. The answer goes to stdout, what it took to stderr."""
    strategies = standard_registry(running.plugins).strategies
    if options.names_strategy:  # else the model says, which takes longer to open
        check_verifier(make_strategy(options, strategies), present=verifier is not None)
    written = read_prompt(asked, running)
    opened = open_runnable(
        model, running.device, running.plugins, running.backend, running.document_tokens,
        verify=running.verify,
    )  # fmt: skip
    options = options.settled(opened.decoding.usual)
    strategy = make_strategy(options, strategies)
    check_canvas(strategy, opened.decoding)
    check_verifier(strategy, present=verifier is not None)
    tokens, added = prompt_tokens(written, opened)
    checks = (
        None
        if verifier is None
        else load_verifier(verifier, opened.device, opened.tokenizer, opened.facts.vocabulary)
    )
    with shown(opened, added, as_json=as_json) as watch:
        found = decode(
            opened.module, [tokens], options, opened.decoding, watch, checks, strategies=strategies
        )
    answer = opened.decode(found.answers[0])
    if as_json:
        told = {"text": answer, "strategy": str(strategy)}
        print_json({**told, **_figures(found, len(tokens), options.length)})
        return
    if sys.stdout.isatty():
        # As the live view drew it: lines break between words, at the edge of the terminal.
        console().print(Text(written.text, style="dim").append(answer, style="not dim"))
    else:
        sys.stdout.write(answer + "\n")
    sys.stdout.flush()
    sys.stderr.write(
        f"{found.written} tokens, {found.steps} steps, {found.forwards} forwards, "
        f"{found.seconds:.2f} s: {found.tokens_per_second:.1f} tokens/s, "
        f"{found.tokens_per_step:.2f} tokens/step, by {strategy}\n"
    )
    if found.cache_bytes:
        plain = f", {size(found.cache_plain_bytes)} as computed"
        coded = plain if found.cache_bytes != found.cache_plain_bytes else ""
        sys.stderr.write(f"cache {size(found.cache_bytes)}{coded}\n")


def _figures(found: Decoded, prompt: int, length: int) -> dict[str, object]:
    (answer,) = found.answers
    return {
        "tokens": answer,
        "finish": "length" if len(answer) == length else "stop",
        "prompt_tokens": prompt,
        "written": found.written,
        "steps": found.steps,
        "forwards": found.forwards,
        "seconds": found.seconds,
        "tokens_per_second": found.tokens_per_second,
        "tokens_per_step": found.tokens_per_step,
        "cache_bytes": found.cache_bytes,
        "cache_plain_bytes": found.cache_plain_bytes,
    }


@contextmanager
def shown(opened: Opened, hidden: int, *, as_json: bool = False) -> Iterator[Watch]:
    """Draw each state on a terminal, without its first ``hidden`` tokens; else show a bar."""
    if as_json or not sys.stdout.isatty():
        with progress() as update:
            yield lambda state: update("decode", *_share(state))
        return
    due = 0.0

    def draw(state: Snapshot) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due or not bool(state.masked.any()):
            live.update(_drawn(state, opened, hidden), refresh=True)
            due = now + 1 / FRAMES

    with Live(console=console(), transient=True, auto_refresh=False) as live:
        yield draw


def _share(state: Snapshot) -> tuple[int, int]:
    if state.steps is not None:
        return state.step, state.steps
    done = int((~state.masked).sum())
    return done, state.masked.numel()


def _drawn(state: Snapshot, opened: Opened, hidden: int) -> Text:
    """The text so far, dim or veiled where nothing is decided."""
    text = Text()
    row, masked = (part[0, hidden:].tolist() for part in (state.tokens, state.masked))
    pairs = zip(row, masked, strict=True)
    for veiled, group in groupby(pairs, key=lambda pair: pair[1]):
        tokens = [token for token, _ in group]
        if veiled:
            seen = opened.decode(tokens) if state.drafts else VEIL * len(tokens)
            text.append(seen, style="dim")
        else:
            text.append(opened.decode(tokens))
    of = "" if state.steps is None else f" of {state.steps}"
    text.append(f"\n\nstep {state.step}{of}", style="dim")
    return text
