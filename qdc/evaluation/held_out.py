"""Held-out text as windows: every token at most once, none invented."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.errors import QdcError


class HeldOut(NamedTuple):
    """Windows ``i64[w, length]``, and the number of the document of each, ``i64[w]``."""

    windows: Tensor
    owners: Tensor


def held_out_windows(
    documents: Sequence[str],
    encode: Callable[[str], list[int]],
    length: int,
    most: int | None = None,
) -> Tensor:
    """The windows of ``held_out``."""
    return held_out(documents, encode, length, most).windows


def held_out(
    documents: Sequence[str],
    encode: Callable[[str], list[int]],
    length: int,
    most: int | None = None,
) -> HeldOut:
    """Cut documents into consecutive windows that do not overlap.

    What is left at a document's end is dropped. Of more than ``most`` windows an even choice is
    taken, in order, so that every part of the text keeps its share. Raises QdcError if no document
    fills a window.
    """
    if length < 1 or (most is not None and most < 1):
        raise QdcError(
            f"found {'any number of' if most is None else most} windows of {length} tokens, "
            "need at least 1 of 1",
            help="raise the number of windows or their length",
        )
    windows: list[Tensor] = []
    owners: list[int] = []
    longest = 0
    for number, document in enumerate(documents):
        tokens = torch.tensor(encode(document), dtype=torch.int64)
        longest = max(longest, len(tokens))
        windows.extend(tokens[: len(tokens) // length * length].view(-1, length))
        owners += [number] * (len(tokens) // length)
    if not windows:
        raise QdcError(
            f"found {len(documents)} documents, the longest of {longest} tokens, "
            f"need one of at least {length} tokens",
            help="give longer held-out text, or a smaller length",
        )
    count = len(windows) if most is None else min(most, len(windows))
    places = [place * len(windows) // count for place in range(count)]
    return HeldOut(
        torch.stack([windows[place] for place in places]),
        torch.tensor([owners[place] for place in places]),
    )
