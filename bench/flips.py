"""Flip single bits of an artifact's files: is each flip refused, or harmless and found?

    python -m bench.flips --flips 300

The embedded model is compiled, and its files take turns: a bit at a random place is flipped, the
file is read, and the bit is flipped back. `qdc.load` and the tokenizer read all that decides what a
model answers, `qdc show` the IR dump, `qdc verify` everything. A flip that loading takes must leave
every logit as it was, be told in the log, and be found by verify. Beside it stands what the same
flips do where digests are not compared: how many change logits without a word. Exits with 1 on a
flip that is taken and is not harmless, or that verify does not find.
"""

import argparse
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

import torch
from torch import Tensor

import qdc
from bench.common.markdown import table
from bench.common.processes import EMBEDDED
from qdc.artifact.digests import CARD, Digests
from qdc.cli.reading import read_graph
from qdc.errors import QdcError
from qdc.pipeline.registry import standard_registry
from qdc.runtime.integrity import examine
from qdc.text.tokenizer import encoder, load_tokenizer

log = logging.getLogger("qdc.artifact.digests")
TEXT = "for i in range(10):\n    print(i)\n"
REGISTRY = standard_registry()
T = TypeVar("T")
Answer = tuple[list[int], Tensor]
"""Tokens of a text, and the logits of the model for them."""


@dataclass
class Count:
    """What became of the flips of one file."""

    flips: int = 0
    refused: int = 0
    """By `qdc.load`, or where the tokenizer is read."""
    harmless: int = 0
    """Taken, with a note, and all answers are as before."""
    wrong: int = 0
    """Taken without a note, or answers are others."""
    shown: int = 0
    """Taken by `qdc show`."""
    found: int = 0
    """By `qdc verify`."""
    unnoticed: int = 0
    """Answers are others where digests are not compared."""


def main() -> int:
    """Flip, count, print; 1 if a flip was taken that should not."""
    given = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="flips-") as scratch:
        out = Path(scratch) / "out"
        if given.artifact is None:
            qdc.compile(EMBEDDED, "data-free", out=out, write_report=False)
        else:
            shutil.copytree(given.artifact, out)
        counts = flip_all(out, given.flips, given.seed, only=given.only)
    head = ("file", "flips", "refused", "harmless", "wrong", "shown", "found", "unnoticed before")
    rows = [(name, *vars(count).values()) for name, count in counts.items()]
    total = ("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:]))
    print(table(head, [*rows, total]))
    return int(any(c.wrong or c.shown or c.found < c.flips for c in counts.values()))


def flip_all(
    out: Path, flips: int, seed: int, *, control: bool = True, only: str = ""
) -> dict[str, Count]:
    """Flip bits of the files of an artifact in turn.

    Args:
        out: the artifact; it is as it was when this returns.
        flips: how many.
        seed: decides the places.
        control: whether each flip is tried without digests as well.
        only: flips in files whose names match this expression; the others are left out.

    Returns:
        What became of them, by file.
    """
    expected = _answer(out)
    files = sorted(path for path in out.iterdir() if path.name != CARD)  # no digest covers it
    counts = {path.name: Count() for path in files}
    for number in range(flips):
        path = files[number % len(files)]
        if not re.search(only, path.name):
            continue
        count = counts[path.name]
        count.flips += 1
        with _flipped(path, Random(f"{seed} {number}")):
            notes = _Notes()
            log.addHandler(notes)
            found = _taken(lambda: _answer(out))
            log.removeHandler(notes)
            count.refused += found is None
            same = found is not None and _equal(found, expected) and path.name in notes.text
            count.harmless += same
            count.wrong += found is not None and not same
            count.shown += _taken(lambda: read_graph(out, REGISTRY.annotations())) is not None and (
                path.name == "ir.qdc"
            )
            count.found += not examine(out, REGISTRY, lambda *_: None).whole
            if control:
                silent = _taken(lambda: _answer(out, verify=False))
                count.unnoticed += silent is not None and not _equal(silent, expected)
    return counts


class _Notes(logging.Handler):
    """What the log says."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.text += record.getMessage()


@contextmanager
def _flipped(path: Path, chance: Random) -> Iterator[None]:
    sound = path.read_bytes()
    place, bit = chance.randrange(len(sound)), chance.randrange(8)
    data = bytearray(sound)
    data[place] ^= 1 << bit
    _write(path, bytes(data))
    try:
        yield
    finally:
        _write(path, sound)


def _write(path: Path, data: bytes) -> None:
    """In a new file: the old one may still be mapped by a model."""
    aside = path.with_name(f".{path.name}")
    aside.write_bytes(data)
    os.replace(aside, path)  # noqa: PTH105


@torch.no_grad()
def _answer(out: Path, *, verify: bool = True) -> Answer:
    """As the commands do that run a model."""
    if verify:
        Digests.of(out).check_companions()
    module = qdc.load(out, verify=verify)
    tokens = encoder(load_tokenizer(out))(TEXT)
    return tokens, module(torch.tensor([tokens]))


def _taken(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except QdcError:
        return None


def _equal(one: Answer, other: Answer) -> bool:
    return one[0] == other[0] and torch.equal(one[1], other[1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.flips", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("artifact", type=Path, nargs="?", help="else the embedded model's")
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files whose names match this expression")
    return parser


if __name__ == "__main__":
    sys.exit(main())
