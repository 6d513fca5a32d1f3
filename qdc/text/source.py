"""Text for calibration and evaluation: the user's, or what travels with qdc."""

import hashlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, TypeVar

from qdc.disk import read_regular
from qdc.errors import InvalidCalibration
from qdc.text.datasets import PARQUET, DatasetFiles, dataset_files, open_rows
from qdc.text.entries import KINDS, LINES, read_entries
from qdc.text.records import (
    DEFAULT_FIELD,
    HOW,
    Dialogue,
    Fields,
    Lazy,
    dialogue,
    document,
    is_empty,
)

EMBEDDED = "embedded"
LARGEST_TEXT = 1 << 30
"""Bytes of a text file, which is read as a whole; arrow and parquet are not."""
PIECE = 1 << 22
S = TypeVar("S", bound=Sequence[object])


class TextSource(NamedTuple):
    """Documents or dialogues, and where they come from.

    ``name`` is that of a file or folder without the folders around it, or ``embedded``; ``digest``
    is the SHA-256 in hexadecimal of a file's bytes, or of the names and bytes of a folder's files.
    One of ``documents`` and ``dialogues`` is empty; records of a dataset are read when drawn.
    ``skipped`` counts records that are null or, in files that are read as a whole, blank.
    """

    name: str
    digest: str
    documents: Sequence[str]
    dialogues: Sequence[Dialogue] = ()
    skipped: int = 0

    @property
    def left_out(self) -> str:
        """What is not used, in words; nothing if all is."""
        if not self.skipped:
            return ""
        whole = len(self.documents) + len(self.dialogues) + self.skipped
        return f"{self.skipped:,} of {whole:,} records hold nothing"


def read_text(path: Path | None, field: str = DEFAULT_FIELD) -> TextSource:
    """Read documents; ``None`` stands for the embedded text. See ``read_source``."""
    return read_source(path, Fields(text=field))


def read_source(path: Path | None, fields: Fields) -> TextSource:
    """Read documents, or dialogues where ``fields`` names prompts and answers, or messages.

    A ``.jsonl`` file holds one object a line; blank lines do not count. A ``.json`` file holds the
    same or an array of objects, ``.csv`` and ``.tsv`` files rows under a row of names, a
    ``.parquet`` file columns. A folder holds what ``datasets`` writes with ``save_to_disk``, or
    parquet or jsonl files. Any other file is one document. Nothing but white space is no document,
    and null no record: they are skipped and counted.
    Raises InvalidCalibration for what is missing, unreadable, not UTF-8 text or without text.
    """
    if path is None:
        _refuse_fields(fields, EMBEDDED)
        data = (files("qdc") / "data" / "calibration.jsonl").read_bytes()
        return _of_entries(EMBEDDED, data, read_entries(LINES, data.decode(), EMBEDDED), Fields())
    if path.is_dir():
        return _folder(path, fields)
    kind = path.suffix.lower()
    if kind == PARQUET:
        return _parquet(path, fields)
    if kind not in KINDS:
        _refuse_fields(fields, path.name)
    data = _bytes(path)
    text = _decode(data, path.name)
    if kind in KINDS:
        return _of_entries(path.name, data, read_entries(kind, text, path.name), fields)
    return TextSource(path.name, _digest(data), _filled((text,), path.name))


def _refuse_fields(fields: Fields, name: str) -> None:
    if fields.option:
        raise InvalidCalibration(
            f"field {fields.names[0]!r} is asked of text that has no fields",
            where=[name],
            help=f"give {fields.option} together with a file of records or a folder of a dataset",
        )


def _of_entries(
    name: str, data: bytes, entries: Iterator[tuple[str, object]], fields: Fields
) -> TextSource:
    dialogues: list[Dialogue] = []
    documents: list[str] = []
    count = 0
    for place, entry in entries:  # of each record no more is kept than what is read
        count += 1
        if is_empty(entry, fields):
            continue
        if fields.chat:
            dialogues.append(dialogue(entry, place, fields))
        else:
            documents.append(document(entry, place, fields.text))
    if fields.chat:
        some = _some(tuple(dialogues), name)
        return TextSource(name, _digest(data), (), some, count - len(some))
    filled = _filled(tuple(documents), name)
    return TextSource(name, _digest(data), filled, (), count - len(filled))


def _folder(path: Path, fields: Fields) -> TextSource:
    """Read a folder; the digest covers the files that hold records, under their names."""
    found = dataset_files(path)
    if found.kind == LINES:
        lines = (
            entry
            for file in found.data
            for entry in read_entries(LINES, _decode_file(file), file.name)
        )
        return _of_entries(path.name, b"", lines, fields)._replace(digest=_digest_of(found.data))
    return _of_rows(path, found, fields)._replace(digest=_digest_of(found.data))


def _parquet(path: Path, fields: Fields) -> TextSource:
    """Read one file of a dataset."""
    try:
        if path.exists() and not path.is_file():
            raise InvalidCalibration("found no regular file", where=[path.name], help=HOW)
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _of_rows(path, DatasetFiles(path, PARQUET, (path,)), fields)._replace(digest=digest)


def _of_rows(path: Path, found: DatasetFiles, fields: Fields) -> TextSource:
    """Records of arrow and parquet files, which are read when they are drawn; without a digest."""
    rows = open_rows(found, fields.names)
    size = len(rows)

    def place(row: int) -> str:
        return f"{path.name} row {row}"

    if fields.chat:
        dialogues = Lazy(size, lambda row: dialogue(rows[row], place(row), fields))
        return TextSource(path.name, "", (), _some(dialogues, path.name), rows.skipped)
    documents = Lazy(size, lambda row: document(rows[row], place(row), fields.text))
    return TextSource(path.name, "", _some(documents, path.name), (), rows.skipped)


def _digest_of(paths: Sequence[Path]) -> str:
    """SHA-256 over names and bytes; of files that were found to be sound, for it may take long."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode("utf-8", "surrogateescape") + b"\0")
        with path.open("rb") as opened:
            while piece := opened.read(PIECE):
                digest.update(piece)
    return digest.hexdigest()


def _some(records: S, name: str) -> S:
    if not records:
        raise InvalidCalibration("found no record, need at least 1", where=[name], help=HOW)
    return records


def _filled(documents: tuple[str, ...], name: str) -> tuple[str, ...]:
    filled = tuple(document for document in documents if not document.isspace() and document)
    if not filled:
        raise InvalidCalibration("the file holds no text", where=[name], help=HOW)
    return filled


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise InvalidCalibration("found no regular file", where=[path.name], help=HOW)
        return read_regular(path, LARGEST_TEXT)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> InvalidCalibration:
    if isinstance(error, FileNotFoundError):
        return InvalidCalibration("there is no such file", where=[str(path)], help=HOW)
    reason = (error.strerror or "unknown reason").lower()
    return InvalidCalibration(f"the file cannot be read: {reason}", where=[path.name], help=HOW)


def _decode_file(path: Path) -> str:
    return _decode(_bytes(path), path.name)


def _decode(data: bytes, name: str) -> str:
    if 0 in data:
        raise InvalidCalibration(
            f"byte {data.index(0)} is zero, this is no text", where=[name], help=HOW
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidCalibration(
            f"byte {error.start} is not UTF-8", where=[name], help=HOW
        ) from error
