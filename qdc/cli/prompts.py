"""The prompt of ``qdc generate``: a text, or the turns of a conversation."""

from dataclasses import dataclass
from pathlib import Path

from qdc.cli.models import Opened
from qdc.cli.terminal import given_text
from qdc.errors import QdcError
from qdc.runtime.decoding.speech import chat_tokens
from qdc.runtime.options import RunOptions
from qdc.text.conversation import read_turns
from qdc.text.records import SYSTEM, USER, Message


@dataclass(frozen=True)
class Asked:
    """What the command line says of a prompt."""

    prompt: str | None
    """``-`` is stdin; None where ``turns`` ends with what is to be answered."""
    special: bool
    """Whether special tokens that are written in it are meant."""
    chat: bool
    """Whether it is written in the chat template."""
    system: str | None
    turns: Path | None


@dataclass(frozen=True)
class Written:
    """A prompt that was read: a text, or the messages of a conversation."""

    text: str = ""
    special: bool = False
    messages: tuple[Message, ...] = ()


def read_prompt(asked: Asked, running: RunOptions) -> Written:
    """Read what was asked for, and refuse what would change nothing. Raises ``QdcError``."""
    _refuse_unread(asked, running)
    if not asked.chat:
        if asked.prompt is None:
            raise QdcError("there is no prompt", help="give a text, or - for stdin")
        return Written(_not_empty(given_text(asked.prompt)), asked.special)
    messages = list(read_history(asked))
    if asked.prompt is not None:
        messages.append(Message(USER, _not_empty(given_text(asked.prompt))))
    if not messages or messages[-1].role != USER:
        said = f"the last turn is of role '{messages[-1].role}'" if messages else "there is none"
        raise QdcError(
            f"the conversation has no turn of the user to answer: {said}",
            help="give PROMPT, or turns of which the last one is the user's",
        )
    return Written(messages=tuple(messages))


def read_history(asked: Asked) -> tuple[Message, ...]:
    """The messages before what is answered: a system message, and turns. Raises ``QdcError``."""
    messages = [] if asked.turns is None else read_turns(asked.turns)
    if asked.system is not None:
        if any(each.role == SYSTEM for each in messages):
            raise QdcError(
                "--system gives a system message, and the turns have one",
                where=[str(asked.turns)],
                help="leave one of them out",
            )
        messages.insert(0, Message(SYSTEM, asked.system))
    return tuple(messages)


def _not_empty(prompt: str) -> str:
    if not prompt.strip():
        raise QdcError(
            "the prompt is empty, and an answer to nothing is noise",
            help="give a text to continue, as in 'def read(path):', or - to read stdin",
        )
    return prompt


def prompt_tokens(written: Written, opened: Opened) -> tuple[list[int], int]:
    """Tokens of a prompt, up to where the answer begins, and how many of them begin no text.

    Those were put in front of it, and are not shown. Raises ``QdcError``.
    """
    if written.messages:
        return chat_tokens(opened.tokenizer, [each._asdict() for each in written.messages]), 0
    typed = opened.encode.piece(written.text, special=written.special)
    before = opened.encode.missing(typed, special=written.special).before
    tokens = [*before, *typed]
    if opened.facts.mask_token_id in tokens:
        raise QdcError(
            f"the prompt writes the mask token, {tokens.count(opened.facts.mask_token_id)} times, "
            "and generate fills nothing in front of an answer",
            help="fill gaps with qdc run",
        )
    return tokens, len(before)


def _refuse_unread(asked: Asked, running: RunOptions) -> None:
    given = {"--system": asked.system is not None, "--turns": asked.turns is not None}
    why, help = "without --chat", "add --chat"
    if asked.chat:
        given = {
            "--special": asked.special,
            "--document-tokens": "document_tokens" in running.model_fields_set,
        }
        why, help = "with --chat: the chat template writes its own special tokens", "leave it out"
    wrong = [name for name, is_given in given.items() if is_given]
    if wrong:
        raise QdcError(f"{', '.join(wrong)} changes nothing {why}", help=help)
