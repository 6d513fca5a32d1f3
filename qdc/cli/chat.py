"""``qdc chat``: a conversation in the terminal, each turn with all that was said before."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.text import Text

from qdc.cli.generate import shown
from qdc.cli.models import Opened, open_runnable
from qdc.cli.prompts import Asked, read_history
from qdc.cli.terminal import console
from qdc.errors import QdcError
from qdc.pipeline.registry import standard_registry
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.speech import chat_tokens
from qdc.runtime.decoding.strategies import check_canvas, make_strategy, needs_verifier
from qdc.runtime.options import RunOptions
from qdc.text.records import ASSISTANT, SYSTEM, USER, Message

PROMPT = "you> "
NEW, LEAVE = "/new", ("/exit", "/quit")
HOW = f"{NEW} begins anew, {LEAVE[0]} or Ctrl-D ends"


def chat_command(
    model: Path,
    options: DecodeOptions,
    running: RunOptions,
    system: str | None,
    turns: Path | None,
    *,
    as_json: bool,
) -> None:
    """Load, then answer line by line. Answers go to stdout, all else to stderr."""
    if options.names_strategy:  # else the model says, which takes longer to open
        strategy = make_strategy(options, standard_registry(running.plugins).strategies)
        if needs_verifier(type(strategy)):
            raise QdcError(
                "apd needs an autoregressive verifier, and a conversation has none",
                help="choose another --strategy, or answer once with qdc generate --chat "
                "--verifier",
            )
    begun = read_history(Asked(None, special=False, chat=True, system=system, turns=turns))
    opened = open_runnable(
        model, running.device, running.plugins, running.backend, running.document_tokens,
        verify=running.verify,
    )  # fmt: skip
    if opened.tokenizer.chat_template is None:
        raise QdcError(
            "the tokenizer has no chat template, so the model was not trained to converse",
            where=[str(model)],
            help="continue a text with qdc generate, or fill gaps with qdc run",
        )
    options = options.settled(opened.decoding.usual)
    check_canvas(make_strategy(options, opened.strategies), opened.decoding)
    conversation = Conversation(opened, options, begun, quiet=as_json)
    if sys.stdin.isatty():
        print(HOW, file=sys.stderr)
    for said in _lines():
        if said in LEAVE:
            return
        if said == NEW:
            conversation = Conversation(opened, options, begun, quiet=as_json)
            print("a new conversation", file=sys.stderr)
        elif said:
            answer = conversation.answer(said)
            if as_json:
                for message in conversation.messages[-2:]:
                    print(json.dumps(message._asdict(), ensure_ascii=False), flush=True)
            else:
                _print(answer)


class Conversation:
    """What was said so far, as far as the model can read it together with an answer."""

    def __init__(
        self,
        opened: Opened,
        options: DecodeOptions,
        begun: tuple[Message, ...],
        *,
        quiet: bool = False,
    ) -> None:
        """Begin with these messages, which are not answered; ``quiet`` draws no answer."""
        self.opened, self.options, self.quiet = opened, options, quiet
        self.messages = list(begun)

    def answer(self, said: str) -> str:
        """Answer a message of the user, and keep both.

        The oldest turns are left out where the model cannot read all, which stderr is told.

        Raises:
            QdcError: the message alone is too long, or the chat template refuses the messages.
        """
        self.messages.append(Message(USER, said))
        tokens = self._tokens()
        with shown(self.opened, len(tokens), as_json=self.quiet) as watch:
            found = decode(
                self.opened.module, [tokens], self.options, self.opened.decoding, watch,
                strategies=self.opened.strategies,
            )  # fmt: skip
        text = self.opened.decode(found.answers[0])
        self.messages.append(Message(ASSISTANT, text))
        return text

    def _tokens(self) -> list[int]:
        facts = self.opened.decoding
        room = facts.max_length - facts.computed(self.options.length)
        left_out = 0
        while True:
            written = [message._asdict() for message in self.messages]
            tokens = chat_tokens(self.opened.tokenizer, written)
            oldest = 1 if self.messages[0].role == SYSTEM else 0
            if len(tokens) <= room or len(self.messages) - oldest <= 1:
                break
            # A turn of the user goes with its answer: templates refuse an answer to nothing.
            end = oldest + 1
            while end < len(self.messages) - 1 and self.messages[end].role != USER:
                end += 1
            left_out += end - oldest
            del self.messages[oldest:end]
        if left_out:
            print(
                f"the conversation is longer than the model reads: the {left_out} oldest messages "
                "are left out",
                file=sys.stderr,
            )
        return tokens


def _lines() -> Iterator[str]:
    """What the user says, line by line, until the end of stdin."""
    if sys.stdin is None:
        raise QdcError(
            "stdin is closed", help="start qdc chat in a terminal, or pipe lines into it"
        )
    while True:
        if sys.stdin.isatty():
            sys.stderr.write(PROMPT)
            sys.stderr.flush()
        try:
            line = sys.stdin.readline()
        except UnicodeError as error:
            raise QdcError(
                f"the text is not UTF-8: {error}", where=["stdin"], help="convert it first"
            ) from error
        if not line:
            return
        yield line.strip()


def _print(answer: str) -> None:
    """Print an answer; on a terminal it wraps as it did while it was written."""
    if sys.stdout.isatty():
        console().print(Text(answer))
    else:
        sys.stdout.write(answer + "\n")
    sys.stdout.flush()
