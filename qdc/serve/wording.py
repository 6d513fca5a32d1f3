"""The tokenizer, as several threads may use it."""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qdc.runtime.decoding.speech import chat_tokens
from qdc.serve.finaltext import INCOMPLETE
from qdc.serve.gaps import GappedText
from qdc.text.tokenizer import Encoder, decode_marked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Wording:
    """Between text and tokens.

    Whether special tokens are read is a state of the tokenizer, so one thread at a time uses it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", encode: Encoder | None = None) -> None:
        """Use this tokenizer, and an encoder that knows what stands in front of a prompt."""
        self._tokenizer, self._lock = tokenizer, threading.Lock()
        self._encode = Encoder(tokenizer) if encode is None else encode
        self._pieces: dict[int, str] = {}
        self._anchor = self._encode("a")
        self.has_template = tokenizer.chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Read plain text; a special token that is written in it is text."""
        with self._lock:
            return self._encode(text)

    def prompt(
        self, text: str, *, special: bool = False, add_special_tokens: bool | None = None
    ) -> list[int]:
        """Read a prompt, behind what the model was trained to see in front of a text.

        Args:
            text: as a client sends it.
            special: whether special tokens that are written in it are meant.
            add_special_tokens: whether those of the tokenizer stand in front; as the server was
                started if None.
        """
        with self._lock:
            if add_special_tokens is False:
                return self._encode.piece(text, special=special)
            encode = Encoder(self._tokenizer, "add") if add_special_tokens else self._encode
            return encode.prompt(text, special=special)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Write a conversation up to where the answer begins.

        Without a chat template each message is a line of plain text, as in calibration. Raises
        ``QdcError`` where the template refuses the messages.
        """
        if not self.has_template:
            return self.prompt("".join(f"{message['content']}\n" for message in messages))
        with self._lock:
            return chat_tokens(self._tokenizer, messages)

    def gapped(self, pieces: Sequence[str], size: int, mask: int) -> GappedText:
        """Read a whole text with a gap of ``size`` tokens between each two pieces.

        Pieces are read one by one, as they stand; a special token that is written in one is text.
        """
        with self._lock:
            read = [self._encode(piece) if piece else [] for piece in pieces]
            before, after = self._encode.surround
        tokens, gaps = list(before), [False] * len(before)
        for number, piece in enumerate(read):
            if number:
                tokens += [mask] * size
                gaps += [True] * size
            tokens += piece
            gaps += [False] * len(piece)
        return GappedText(
            [*tokens, *after], [*gaps, *[False] * len(after)], size, len(before), len(after)
        )

    def decode(self, tokens: list[int]) -> str:
        """Write text. Spaces are never tidied up, so more tokens never change what was written."""
        with self._lock:
            return self._decode(tokens)

    def pieces(self, tokens: Sequence[int], masked: Sequence[bool]) -> list[str | None]:
        """The text of each token, nothing where it is masked.

        Tokens that are no text alone, as parts of a character, give theirs at the first of them.
        """
        found: list[str | None] = []
        place = 0
        with self._lock:
            while place < len(tokens):
                if masked[place]:
                    found.append(None)
                    place += 1
                    continue
                text, end = self._piece(tokens[place]), place + 1
                if INCOMPLETE in text:
                    while end < len(tokens) and not masked[end] and self._is_part(tokens[end]):
                        end += 1
                    text = self._after_anchor(list(tokens[place:end]))
                found += [text, *[""] * (end - place - 1)]
                place = end
        return found

    def _is_part(self, token: int) -> bool:
        return INCOMPLETE in self._piece(token)

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self._after_anchor([token])
        return self._pieces[token]

    def _after_anchor(self, tokens: list[int]) -> str:
        """Decode behind a plain letter: some tokenizers drop the space of the first token."""
        return self._decode([*self._anchor, *tokens])[len(self._decode(self._anchor)) :]

    def _decode(self, tokens: list[int]) -> str:
        return decode_marked(self._tokenizer, tokens, clean_up_tokenization_spaces=False)
