"""What a tokenizer's post-processor puts around a whole document: [CLS], [SEP], BOS, EOS."""

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from qdc.errors import InvalidCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PROBES = ("a", "A", "0")
"""Texts that most tokenizers know."""


class Surround(NamedTuple):
    """Token ids in front of a whole document and behind it."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def lacking(self, ids: Sequence[int]) -> "Surround":
        """What ids that begin or end with these tokens already do not get a second time."""
        first, last = self.before, self.after
        begun = tuple(ids[: len(first)]) == first
        ended = tuple(ids[len(ids) - len(last) :]) == last
        return Surround(() if begun else first, () if ended else last)

    def around(self, ids: Sequence[int]) -> list[int]:
        """The ids of a text, between these."""
        return [*self.before, *ids, *self.after]


def surround(tokenizer: "PreTrainedTokenizerFast") -> Surround:
    """What the post-processor puts around a text.

    It is read from a text that is encoded, whose own tokens the tokenizer tells from added ones: an
    empty text would not show which of them close it.

    Raises:
        InvalidCheckpoint: the post-processor repeats, cuts or interrupts a text.
        ValueError: no text gives a token.
    """
    backend = tokenizer.backend_tokenizer
    if not backend.num_special_tokens_to_add(is_pair=False):
        return Surround()
    known = (text for text in backend.get_vocab(with_added_tokens=False))
    for text in chain(PROBES, known):
        whole = backend.encode(text)
        own = [place for place, owner in enumerate(whole.sequence_ids) if owner is not None]
        if own:
            break
    else:
        raise ValueError("no text gives a token")
    first, end = own[0], own[-1] + 1
    plain = backend.encode(text, add_special_tokens=False).ids
    if whole.ids[first:end] != plain:
        raise InvalidCheckpoint(
            f"the tokenizer's post-processor makes {whole.ids} of a text of the tokens {plain}",
            where=["tokenizer.json"],
            help="give a post-processor that puts tokens in front of a text and behind it",
        )
    return Surround(tuple(whole.ids[:first]), tuple(whole.ids[end:]))
