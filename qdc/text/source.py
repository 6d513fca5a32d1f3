"""Text for calibration and evaluation: the user's, or what travels with qdc."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from torch import Tensor

from qdc.disk import read_regular
from qdc.errors import InvalidCalibration
from qdc.text.datasets import PARQUET, DatasetFiles, dataset_files, open_rows
from qdc.text.entries import JSON, KINDS, LINES, read_entries
from qdc.text.records import (
    DEFAULT_FIELD,
    HOW,
    Dialogue,
    Fields,
    dialogue,
    document,
    is_empty,
    parse_line,
)
from qdc.text.scanning import LONGEST_LINE, MARK, decode, opened, scan_lines, scan_text
from qdc.text.stored import Documents, Lines, Reading, Stamp

EMBEDDED = "embedded"
LARGEST_TEXT = 1 << 30
"""Bytes of a file that is read as a whole: tables, and arrays of JSON."""
SMALL = 1 << 22
"""Bytes up to which text is held in memory; of larger files just what is drawn is read."""
PIECE = 1 << 22
S = TypeVar("S", bound=Sequence[object])


class TextSource(NamedTuple):
    """Documents or dialogues, and where they come from.

    ``name`` is that of a file or folder without the folders around it, or ``embedded``; ``digest``
    is the SHA-256 in hexadecimal of a file's bytes, or of the names and bytes of a folder's files.
    One of ``documents`` and ``dialogues`` is empty; those of large files and of datasets are read
    when they are drawn. ``skipped`` counts records that are null or blank.
    """

    name: str
    digest: str
    documents: Sequence[str]
    dialogues: Sequence[Dialogue] = ()
    skipped: int = 0
    rows: Tensor | None = None
    """Token ids ``i64[n, length]`` in the place of documents: see ``qdc.text.rows``."""

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

    All of a file is looked through, once; of a large text file or file of lines nothing is kept but
    where its lines begin. Raises InvalidCalibration for what is missing, unreadable, not UTF-8 text
    or without text.
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
        return _plain(path)
    if kind == LINES or (kind == JSON and _holds_lines(path)):
        return _of_lines(path.name, [path], fields)
    with opened(path, LARGEST_TEXT):
        data = read_regular(path, LARGEST_TEXT)
    text = decode(data, path.name)[0].removeprefix("\ufeff")
    return _of_entries(path.name, data, read_entries(kind, text, path.name), fields)


def _refuse_fields(fields: Fields, name: str) -> None:
    if fields.option:
        raise InvalidCalibration(
            f"field {fields.names[0]!r} is asked of text that has no fields",
            where=[name],
            help=f"give {fields.option} together with a file of records or a folder of a dataset",
        )


def _plain(path: Path) -> TextSource:
    """One document."""
    with opened(path) as file:
        found, digest = scan_text(file, path)
    small = found.stamp.size <= SMALL
    return TextSource(path.name, digest, tuple(found) if small else found)


def _holds_lines(path: Path) -> bool:
    """Whether a large ``.json`` file holds a record a line: its first line is one by itself."""
    with opened(path) as file:
        if Stamp.of(path, file.fileno()).size <= SMALL:
            return False
        first = file.readline(LONGEST_LINE).removeprefix(MARK).strip()
        if first.startswith(b"["):
            return False
        try:
            return isinstance(parse_line(first.decode(), path.name), dict)
        except (InvalidCalibration, UnicodeDecodeError):
            return False


def _of_lines(
    name: str, paths: Sequence[Path], fields: Fields, *, named: bool = False
) -> TextSource:
    """Records of lines of files; with ``named`` the digest covers the files' names too."""
    read, digest, lines = partial(_record, fields=fields), hashlib.sha256(), Lines()
    small = sum(path.stat().st_size for path in paths if path.is_file()) <= SMALL
    kept, ends, every = list[str | Dialogue](), array("q"), 0
    for path in paths:
        starts = array("q")
        if named:
            digest.update(_name(path))
        with opened(path) as file:
            stamp = Stamp.of(path, file.fileno())
            for line in scan_lines(file, path.name, digest):
                every += 1
                found = _usual(line.entry, fields) or read(line.entry, line.place)
                if found is None:
                    continue
                starts.append(line.start)
                if small:
                    kept.append(found)
                if isinstance(found, str):
                    ends.append(len(found) + (ends[-1] if ends else 0))
        lines.add(stamp, np.asarray(starts))
    skipped = every - len(lines)

    def again(place: int) -> str | Dialogue:
        line, file = lines.read(place)
        found = read(parse_line(line, file), file)
        assert found is not None, "it was there when the file was looked through"
        return found

    if fields.chat:
        dialogues: Sequence[Any] = tuple(kept) if small else Reading(len(lines), again)
        return TextSource(name, digest.hexdigest(), (), _some(dialogues, name), skipped)
    if not lines:
        raise InvalidCalibration("the file holds no text", where=[name], help=HOW)
    documents: Sequence[Any] = tuple(kept)
    if not small:
        documents = Documents(np.asarray(ends), ends[-1], cast(Callable[[int], str], again))
    return TextSource(name, digest.hexdigest(), documents, (), skipped)


def _record(entry: object, place: str, fields: Fields) -> str | Dialogue | None:
    """What a record holds; None for nothing."""
    if is_empty(entry, fields):
        return None
    if fields.chat:
        return dialogue(entry, place, fields)
    found = document(entry, place, fields.text)
    return found if found and not found.isspace() else None


def _usual(entry: object, fields: Fields) -> str | None:
    """The document of a record as nearly all are, at once; None for any other."""
    text = entry.get(fields.text) if type(entry) is dict and not fields.chat else None
    return text if type(text) is str and text.isascii() and not text.isspace() else None


def _of_entries(
    name: str, data: bytes, entries: Iterator[tuple[str, object]], fields: Fields
) -> TextSource:
    kept: list[Any] = []
    count = 0
    for place, entry in entries:  # of each record no more is kept than what is read
        count += 1
        found = _record(entry, place, fields)
        if found is not None:
            kept.append(found)
    digest, skipped = hashlib.sha256(data).hexdigest(), count - len(kept)
    if fields.chat:
        return TextSource(name, digest, (), _some(tuple(kept), name), skipped)
    if not kept:
        raise InvalidCalibration("the file holds no text", where=[name], help=HOW)
    return TextSource(name, digest, tuple(kept), (), skipped)


def _folder(path: Path, fields: Fields) -> TextSource:
    """Read a folder; the digest covers the files that hold records, under their names."""
    found = dataset_files(path)
    if found.kind == LINES:
        return _of_lines(path.name, found.data, fields, named=True)
    return _of_rows(path, found, fields)._replace(digest=_digest_of(found.data))


def _parquet(path: Path, fields: Fields) -> TextSource:
    """Read one file of a dataset."""
    with opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return _of_rows(path, DatasetFiles(path, PARQUET, (path,)), fields)._replace(digest=digest)


def _of_rows(path: Path, found: DatasetFiles, fields: Fields) -> TextSource:
    """Records of arrow and parquet files, which are read when they are drawn; without a digest."""
    rows = open_rows(found, fields.names, blank=not fields.chat)
    size = len(rows)

    def place(row: int) -> str:
        return f"{path.name} row {row}"

    if fields.chat:
        dialogues = Reading(size, lambda row: dialogue(rows[row], place(row), fields))
        return TextSource(path.name, "", (), _some(dialogues, path.name), rows.skipped)

    def read(row: int) -> str:
        return document(rows[row], place(row), fields.text)

    ends = np.cumsum(rows.sizes(fields.text, read))
    documents = Documents(ends, int(ends[-1]) if size else 0, read)
    return TextSource(path.name, "", _some(documents, path.name), (), rows.skipped)


def _digest_of(paths: Sequence[Path]) -> str:
    """SHA-256 over names and bytes; of files that were found to be sound, for it may take long."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(_name(path))
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
    return digest.hexdigest()


def _name(path: Path) -> bytes:
    return path.name.encode("utf-8", "surrogateescape") + b"\0"


def _some(records: S, name: str) -> S:
    if not records:
        raise InvalidCalibration("found no record, need at least 1", where=[name], help=HOW)
    return records
