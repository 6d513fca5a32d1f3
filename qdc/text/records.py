"""What a record of calibration data says: a document, or a prompt with its answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from qdc.errors import InvalidCalibration, nearest
from qdc.jsontext import UnfitJson, parse_json

DEFAULT_FIELD = "text"
HOW = (
    "give a UTF-8 text file, a file of records (.jsonl, .json, .csv, .tsv, .parquet), or a folder "
    "of a dataset (save_to_disk, parquet or jsonl)"
)
ASSISTANT, USER, SYSTEM = "assistant", "user", "system"
ROLES = (SYSTEM, USER, ASSISTANT)


@dataclass(frozen=True)
class Fields:
    """Names of the fields of a record that are read."""

    text: str = DEFAULT_FIELD
    """Field of a document."""
    chat: tuple[str, ...] = ()
    """For dialogues: fields of a prompt and of its answer, or one field of a list of messages."""

    @classmethod
    def parse(cls, text: str = DEFAULT_FIELD, chat: str | None = None) -> "Fields":
        """From the options ``--text-field`` and ``--chat-fields``. Raises InvalidCalibration."""
        if chat is None:
            return cls(text)
        names = tuple(name.strip() for name in chat.split(","))
        if text != DEFAULT_FIELD or len(names) > 2 or not all(names):
            raise InvalidCalibration(
                f"found text in {text!r} and dialogues in {chat!r}, need one of them; dialogues in "
                "two fields, or in one of messages",
                help="--text-field text, --chat-fields prompt,answer or --chat-fields messages",
            )
        return cls(chat=names)

    @property
    def option(self) -> str | None:
        """The option of the command line that has changed them; None if none has."""
        if self.chat:
            return "--chat-fields"
        return None if self.text == DEFAULT_FIELD else "--text-field"

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are read."""
        return self.chat or (self.text,)


class Message(NamedTuple):
    """One turn: ``system``, ``user`` or ``assistant``, and what it says."""

    role: str
    content: str


class Dialogue(NamedTuple):
    """Turns that are given, and the answer to the last of them."""

    prompt: tuple[Message, ...]
    answer: str


def parse_line(line: str, place: str) -> object:
    """Parse one line of JSON. Raises InvalidCalibration, naming the place."""
    try:
        entry: object = parse_json(line)
    except json.JSONDecodeError as error:
        raise InvalidCalibration(
            f"no valid JSON at column {error.colno}: {error.msg.lower()}", where=[place], help=HOW
        ) from error
    except UnfitJson as error:
        raise InvalidCalibration(f"the JSON {error}", where=[place], help=HOW) from error
    except ValueError as error:
        raise InvalidCalibration("no JSON that can be read", where=[place], help=HOW) from error
    return entry


def is_empty(entry: object, fields: Fields) -> bool:
    """Whether a record holds nothing: it is null, or a field is that would be read."""
    if not isinstance(entry, Mapping):
        return entry is None
    return any(name in entry and entry[name] is None for name in fields.names)


def document(entry: object, place: str, field: str) -> str:
    """The text of a record. Raises InvalidCalibration, naming the place."""
    return _text(_field(entry, place, field), place, field)


def dialogue(entry: object, place: str, fields: Fields) -> Dialogue:
    """The dialogue of a record; what follows its last answer is left out.

    Raises InvalidCalibration, naming the place.
    """
    if len(fields.chat) == 2:
        prompt, answer = (document(entry, place, name) for name in fields.chat)
        return Dialogue((Message(USER, prompt),), answer)
    [messages] = fields.chat
    found = _field(entry, place, messages)
    if not isinstance(found, list):
        raise InvalidCalibration(
            f"the field '{messages}' holds {_kind(found)}, need a list of messages",
            where=[place],
            help='each message is {"role": "user", "content": "..."}',
        )
    turns = [
        Message(*(document(turn, f"{place} message {number}", part) for part in Message._fields))
        for number, turn in enumerate(found, 1)
    ]
    answers = [number for number, turn in enumerate(turns) if turn.role == ASSISTANT]
    if not answers or not answers[-1]:
        raise InvalidCalibration(
            f"found {len(turns)} messages, need a prompt and an answer of role '{ASSISTANT}'",
            where=[place],
            help="leave such records out of the data",
        )
    return Dialogue(tuple(turns[: answers[-1]]), turns[answers[-1]].content)


def _field(entry: object, place: str, field: str) -> object:
    if not isinstance(entry, Mapping):
        raise InvalidCalibration(
            f"found {_kind(entry)}, need an object with the field '{field}'",
            where=[place],
            help=f'write each line as {{"{field}": "..."}}',
        )
    if field not in entry:
        raise InvalidCalibration(
            f"the field '{field}' is missing", where=[place], help=nearest(field, entry)
        )
    value: object = entry[field]
    return value


def _text(found: object, place: str, field: str) -> str:
    if not isinstance(found, str):
        raise InvalidCalibration(
            f"the field '{field}' holds {_kind(found)}, need text",
            where=[place],
            help="name the field that holds the text",
        )
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise InvalidCalibration(
            f"the field '{field}' holds half a surrogate pair at character {error.start}",
            where=[place],
            help="write the text as UTF-8, or both halves as \\u escapes",
        ) from error
    return found


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")
