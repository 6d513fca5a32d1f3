"""Held-out text as windows: every token at most once, none invented."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.ir.text_use import HeldOutPack, TextUse
from qdc.text.joined import join, stored


class HeldOut(NamedTuple):
    """Windows ``i64[w, length]``, and what they were made of."""

    windows: Tensor
    owners: Tensor
    """``i64[w]``: the number of the document in which each begins."""
    use: TextUse


def held_out_windows(
    documents: Sequence[str],
    encode: Callable[[str], list[int]],
    length: int,
    most: int | None = None,
    pack: HeldOutPack = "documents",
) -> Tensor:
    """The windows of ``held_out``."""
    return held_out(documents, encode, length, most, pack).windows


def held_out(
    documents: Sequence[str],
    encode: Callable[[str], list[int]],
    length: int,
    most: int | None = None,
    pack: HeldOutPack = "documents",
) -> HeldOut:
    """Cut text into consecutive windows that do not overlap.

    Of more than ``most`` windows an even choice is taken, in order, so that every part of the text
    keeps its share. Of large text only what is taken is tokenized.

    Args:
        documents: the text.
        encode: from text to token ids.
        length: tokens of a window.
        most: windows at most; all if not given.
        pack: ``documents`` cuts them joined, as the tokenizer separates them, and drops what is
            left at the end of all; ``within`` cuts each by itself, and drops what is left of each.

    Raises:
        QdcError: the text does not fill a window.
    """
    if length < 1 or (most is not None and most < 1):
        raise QdcError(
            f"found {'any number of' if most is None else most} windows of {length} tokens, "
            "need at least 1 of 1",
            help="raise the number of windows or their length",
        )
    if pack == "within":
        return _within(documents, encode, length, most)
    joined = join(documents, encode)
    # Where tokens were not counted, windows stand apart by twice of what they are thought to take.
    if not joined.counted and (most is None or 2 * most * length > joined.tokens()):
        joined = joined.whole()
    if joined.tokens() < length:
        raise QdcError(
            f"found {joined.count:,} documents of {joined.tokens():,} tokens in all, need at least "
            f"the {length:,} tokens of a window",
            help="give longer held-out text, or a smaller length",
        )
    if joined.counted:
        starts = [length * place for place in _even(joined.size // length, most)]
    else:
        starts = _even(joined.size, most)
    windows, inside = joined.take(starts, length)
    use = TextUse(
        pack="documents",
        judged=True,
        documents=joined.count,
        characters=joined.characters,
        tokens=joined.tokens(),
        counted=joined.counted,
        used=len(torch.unique(inside)),
        windows=len(windows),
        length=length,
        distinct=len(torch.unique(windows, dim=0)),
    )
    return HeldOut(windows, inside[:, 0].clone(), use)


def _within(
    documents: Sequence[str],
    encode: Callable[[str], list[int]],
    length: int,
    most: int | None,
) -> HeldOut:
    every: list[Tensor] = []
    owners: list[int] = []
    longest = short = total = 0
    for number, document in enumerate(documents):
        tokens = torch.tensor(encode(document), dtype=torch.int64)
        total += len(tokens)
        longest = max(longest, len(tokens))
        short += len(tokens) < length
        every.extend(tokens[: len(tokens) // length * length].view(-1, length))
        owners += [number] * (len(tokens) // length)
    if not every:
        raise QdcError(
            f"found {len(documents)} documents, the longest of {longest} tokens, "
            f"need one of at least {length} tokens",
            help="take pack=documents, which joins them, or give longer held-out text, or a "
            "smaller length",
        )
    places = _even(len(every), most)
    windows = torch.stack([every[place] for place in places])
    chosen = torch.tensor([owners[place] for place in places])
    use = TextUse(
        pack="within",
        judged=True,
        documents=len(documents),
        characters=stored(documents).characters,
        tokens=total,
        counted=True,
        used=len(torch.unique(chosen)),
        windows=len(windows),
        length=length,
        distinct=len(torch.unique(windows, dim=0)),
        looked_at=len(documents),
        unusable=short,
    )
    return HeldOut(windows, chosen, use)


def _even(count: int, most: int | None) -> list[int]:
    """Places below ``count``, at most ``most``, an even way apart."""
    chosen = count if most is None else min(most, count)
    return [number * count // chosen for number in range(chosen)]
