"""A conversation in a file: its turns, each with who speaks and what is said."""

from collections.abc import Mapping
from pathlib import Path

from qdc.disk import LARGEST_JSON, read_regular
from qdc.errors import InvalidCalibration, QdcError
from qdc.text.entries import JSON, LINES, read_entries
from qdc.text.records import ROLES, Message, document

FORM = 'a message a line: {"role": "user", "content": "..."}'
LIST = "messages"


def read_turns(path: Path) -> list[Message]:
    """Read the turns of one conversation.

    A ``.jsonl`` file has a message a line, a ``.json`` file an array of them. One line may hold all
    messages, as an array or as an object with ``messages``, the form of data for chats.

    Raises:
        QdcError: the file is missing or no such file; line and field are named.
    """
    kind = path.suffix.lower()
    if kind not in (LINES, JSON):
        raise QdcError(f"{path.name} is no .jsonl or .json file", help=f"write {FORM}")
    try:
        text = read_regular(path, LARGEST_JSON).decode("utf-8")
        entries = list(read_entries(kind, text, path.name))
        if len(entries) == 1:
            entries = _unfolded(*entries[0])
        return [_message(entry, place) for place, entry in entries]
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise QdcError(f"cannot read the turns: {reason}", where=[str(path)]) from error
    except UnicodeError as error:
        raise QdcError("the turns are not UTF-8", where=[path.name]) from error
    except InvalidCalibration as error:
        raise QdcError(error.what, where=error.where, help=f"write {FORM}") from error


def _unfolded(place: str, entry: object) -> list[tuple[str, object]]:
    """The messages of a record that holds all of them, each with its place."""
    found = entry.get(LIST) if isinstance(entry, Mapping) and LIST in entry else entry
    if not isinstance(found, list):
        return [(place, found)]
    return [(f"{place} message {number}", each) for number, each in enumerate(found, 1)]


def _message(entry: object, place: str) -> Message:
    if isinstance(entry, list) or (isinstance(entry, Mapping) and LIST in entry):
        raise QdcError(
            "found several conversations, and one is answered",
            where=[place],
            help="put each of them into a file of its own",
        )
    found = Message(*(document(entry, place, part) for part in Message._fields))
    if found.role not in ROLES:
        raise QdcError(
            f"the field 'role' holds {found.role!r}, need one of {', '.join(ROLES)}",
            where=[place],
            help=f"write {FORM}",
        )
    return found
