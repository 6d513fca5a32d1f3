"""Documents joined as one circle of tokens: each whole, with what the tokenizer separates them by.

Small text is tokenized, and places are counted in tokens. Of large text only what is taken is
tokenized: places are characters (bytes of one large file), and of a long document tokens are read
from the beginning of a word on, as far as they are needed.
"""

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.text.source import SMALL
from qdc.text.stored import Documents, Numbers
from qdc.text.surround import Surround
from qdc.text.tokenizer import Encoder

Encode = Callable[[str], list[int]]
WHOLE = 1 << 14
"""Places up to which a document is tokenized as a whole, wherever it begins to be read."""
STEP = 1 << 12
"""Places of a longer document that are tokenized at a time."""
REACH = 256
"""Places in front of a beginning in which a word may begin."""
LONGEST_WORD = 1 << 16
"""Characters without a beginning of a word, after which text is cut anywhere."""
PROBES = 16
"""Beginnings at which it is found out how many places a token has."""
WORD = re.compile(r"(?<=\S) (?=\S)")
"""Where all tokenizers begin a token: at one blank between two words, which goes with the second.
A run of blanks, and a line's end after a sign, may be parts of other tokens."""
BLANK = re.compile(r"(?<=\S)\s")


class Taken(NamedTuple):
    """Windows of joined documents."""

    windows: Tensor
    """``i64[windows, length]`` token ids."""
    documents: Tensor
    """``i64[windows, length]``: the document of each token."""


class Joined(Protocol):
    """Documents as one circle."""

    count: int
    """Documents."""
    characters: int
    size: int
    """Places on the circle."""
    counted: bool
    """Whether places are tokens, all of which were counted."""

    def tokens(self) -> int:
        """Tokens of all documents; an estimate if they were not counted."""

    def places(self, tokens: int) -> int:
        """Places that so many tokens take, about; exact if tokens were counted."""

    def take(self, starts: Sequence[int], length: int) -> Taken:
        """Windows that begin at these places. Raises InvalidCalibration if there is no token."""

    def whole(self) -> "Joined":
        """The same with all tokens, which are held in memory."""


def join(documents: Sequence[str], encode: Encode) -> Joined:
    """Join documents; small text is tokenized at once, and the last one is remembered.

    Raises:
        InvalidCalibration: the text has no token.
    """
    found = stored(documents)
    if not found.characters:
        raise no_token(len(found), 0)
    if is_small(documents):
        return _tokenized(tuple(documents), encode)
    return _Read(found, encode)


def is_small(documents: Sequence[str]) -> bool:
    """Whether so little text is tokenized at once and counted."""
    return stored(documents).characters <= SMALL


def stored(documents: Sequence[str]) -> Documents:
    """Documents with their sizes."""
    return documents if isinstance(documents, Documents) else Documents.held(documents)


def separators(encode: Encode) -> Surround:
    """What stands around each of several documents that follow each other.

    What the tokenizer's post-processor puts around a text; where it puts nothing, the token that
    ends a text, or else the one that begins it, as in the data that such models are trained on.
    """
    if not isinstance(encode, Encoder):
        return Surround()
    if any(encode.surround):
        return encode.surround
    ends, begins = encode.tokenizer.eos_token_id, encode.tokenizer.bos_token_id
    if ends is not None:
        return Surround(after=(int(ends),))
    return Surround() if begins is None else Surround(before=(int(begins),))


def no_token(documents: int, characters: int) -> InvalidCalibration:
    """The error for text in which a tokenizer finds nothing."""
    return InvalidCalibration(
        f"found no token in {documents} documents of {characters} characters",
        help="give text that the tokenizer of this model knows",
    )


@lru_cache(maxsize=1)
def _tokenized(documents: tuple[str, ...], encode: Encode) -> "_Tokenized":
    before, after = separators(encode)
    inside = [encode(document) for document in documents]
    characters = sum(map(len, documents))
    if not any(inside):
        raise no_token(len(documents), characters)
    every = [np.array([*before, *ids, *after], np.int64) for ids in inside]
    return _Tokenized(np.concatenate(every), list(map(len, every)), characters)


class _Tokenized:
    """All tokens, in memory; places are tokens."""

    counted = True

    def __init__(self, ids: Numbers, lengths: Sequence[int], characters: int) -> None:
        self.count, self.characters, self.size = len(lengths), characters, len(ids)
        self._ids, self._ends = torch.from_numpy(ids), torch.tensor(lengths).cumsum(0)

    def tokens(self) -> int:
        return self.size

    def places(self, tokens: int) -> int:
        return tokens

    def whole(self) -> Joined:
        return self

    def take(self, starts: Sequence[int], length: int) -> Taken:
        places = (torch.tensor(starts)[:, None] + torch.arange(length)) % self.size
        return Taken(self._ids[places], torch.searchsorted(self._ends, places, right=True))


class _Read:
    """Documents that are tokenized where windows are taken; places are theirs."""

    counted = False

    def __init__(self, documents: Documents, encode: Encode) -> None:
        self.documents, self.encode = documents, encode
        self.around = separators(encode)
        self.count, self.characters = len(documents), documents.characters
        self.size = int(documents.ends[-1])
        self._read, self._found = 0, 0
        self._drops_blank = _drops_blank(encode)
        for probe in range(PROBES):
            next(self._from(probe * self.size // PROBES))

    def tokens(self) -> int:
        around = len(self.around.before) + len(self.around.after)
        return round(self.characters * self._found / self._read) + around * self.count

    def places(self, tokens: int) -> int:
        return round(tokens * self.size / self.tokens())

    def take(self, starts: Sequence[int], length: int) -> Taken:
        windows = np.empty((len(starts), length), np.int64)
        documents = np.empty_like(windows)
        for window, owners, start in zip(windows, documents, starts, strict=True):
            filled = 0
            for document, ids in self._from(start):
                taken = ids[: length - filled]
                window[filled : filled + len(taken)] = taken
                owners[filled : filled + len(taken)] = document
                filled += len(taken)
                if filled == length:
                    break
        return Taken(torch.from_numpy(windows), torch.from_numpy(documents))

    def whole(self) -> Joined:
        ids, lengths = array("q"), []
        for document in range(self.count):
            before = len(ids)
            for part in self._tokens(document, 0):
                ids.extend(part)
            lengths.append(len(ids) - before)
        return _Tokenized(np.array(ids, np.int64), lengths, self.characters)

    def _from(self, place: int) -> Iterator[tuple[int, list[int]]]:
        """Yield tokens, and the document that they belong to, from a place on, round and round."""
        ends = self.documents.ends
        document = int(np.searchsorted(ends, place, side="right"))
        start = place - (int(ends[document - 1]) if document else 0)
        empty = 0
        while empty <= self.count:
            empty += 1
            for ids in self._tokens(document, start):
                if ids:
                    empty = 0
                    yield document, ids
            document, start = (document + 1) % self.count, 0
        raise no_token(self.count, self.characters)

    def _tokens(self, document: int, start: int) -> Iterator[list[int]]:
        """Yield tokens of a document from a place in it on."""
        before, after = self.around
        ends = self.documents.ends
        size = int(ends[document]) - (int(ends[document - 1]) if document else 0)
        if size <= WHOLE:
            ids = [*before, *self._encoded(self.documents.part(document, 0, size)), *after]
            yield ids[start * len(ids) // max(1, size) :]
            return
        carried = ""
        if start:
            near = self.documents.part(document, max(0, start - REACH), start)
            first = self.documents.part(document, start, min(size, start + 4))[:1]
            cut = _last_word(near + first, len(near))
            if cut is None and start <= REACH:
                cut = 0  # no word begins in the document before this one, its first
            carried = "" if cut is None else near[cut:]
        elif before:
            yield list(before)
        while start < size:
            text = carried + self.documents.part(document, start, start + STEP)
            start += STEP
            cut = len(text) if start >= size else _last_word(text, len(text) - 1)
            if not cut:
                cut = len(text) if len(text) > LONGEST_WORD else 0
            carried = text[cut:]
            if cut:
                yield self._encoded(text[:cut])
        yield list(after)

    def _encoded(self, text: str) -> list[int]:
        bare = text.removeprefix(" ") if self._drops_blank else text
        ids = self.encode(bare)
        self._read += len(text)
        self._found += len(ids)
        return ids


def _last_word(text: str, last: int) -> int | None:
    """Where the last word begins that begins at ``last`` or before, if any."""
    for kind in (WORD, BLANK):
        found = [match.start() for match in kind.finditer(text) if match.start() <= last]
        if found:
            return found[-1]
    return None


def _drops_blank(encode: Encode) -> bool:
    """Whether the blank in front of a word must go where a text begins with it.

    So it is where the tokenizer puts one of its own in front of any text.
    """
    both, first = encode("x a"), encode("x")
    return both != first + encode(" a") and both == first + encode("a")
