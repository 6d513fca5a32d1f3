"""Held-out text as windows: every token at most once, none invented."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qdc.errors import QdcError


def held_out_windows(
    documents: Sequence[str],
    encode: Callable[[str], list[int]],
    length: int,
    most: int | None = None,
) -> Tensor:
    """Cut documents into consecutive windows that do not overlap: ``i64[w, length]``.

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
    longest = 0
    for document in documents:
        tokens = torch.tensor(encode(document), dtype=torch.int64)
        longest = max(longest, len(tokens))
        windows.extend(tokens[: len(tokens) // length * length].view(-1, length))
    if not windows:
        raise QdcError(
            f"found {len(documents)} documents, the longest of {longest} tokens, "
            f"need one of at least {length} tokens",
            help="give longer held-out text, or a smaller length",
        )
    count = len(windows) if most is None else min(most, len(windows))
    return torch.stack([windows[place * len(windows) // count] for place in range(count)])
