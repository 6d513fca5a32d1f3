"""Dataset folders on disk: what ``datasets`` writes with ``save_to_disk``, parquet, jsonl.

Only data is read: no loading script, no cache, no network. Arrow files are mapped into memory, not
copied. Arrow and parquet need ``pyarrow``, the optional extra ``data``.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from qdc.disk import LARGEST_JSON, read_regular
from qdc.errors import InvalidCalibration, QdcError, nearest
from qdc.jsontext import UnfitJson, parse_json
from qdc.text.records import HOW
from qdc.text.stored import Numbers
from qdc.version import install

ARROW, PARQUET, LINES = ".arrow", ".parquet", ".jsonl"
STATE, SPLITS = "state.json", "dataset_dict.json"
MOST_FILES = 1 << 15


class DatasetFiles(NamedTuple):
    """The files of one split, in order, and their common suffix."""

    folder: Path
    kind: str
    data: tuple[Path, ...]


class Records(Protocol):
    """Records by place."""

    skipped: int
    """Records that are left out: a field that is read is null, or a text blank."""

    def __len__(self) -> int:
        """Number of records."""

    def __getitem__(self, place: int) -> dict[str, Any]:
        """The record at a place, with all its fields."""

    def sizes(self, column: str, read: Callable[[int], str]) -> Numbers:
        """Characters of the text of each record, ``i64[records]``; ``read`` gives one.

        Raises InvalidCalibration where ``read`` does, for what is no text.
        """


def dataset_files(folder: Path) -> DatasetFiles:
    """Find a folder's files. Raises InvalidCalibration if it holds none, or several datasets."""
    if (folder / SPLITS).is_file():
        return _only_split(folder)
    if (folder / STATE).is_file():
        return DatasetFiles(folder, ARROW, _saved(folder))
    below = _below(folder)
    for kind in (PARQUET, LINES):
        found = sorted(f for f in below if f.suffix.lower() == kind and f.is_file())
        if found:
            return DatasetFiles(folder, kind, tuple(found))
    raise InvalidCalibration(
        "found a folder, need a file or the folder of a dataset", where=[folder.name], help=HOW
    )


def _below(folder: Path) -> list[Path]:
    """All that lies in a folder; a disk is no dataset."""
    try:
        found = list(islice(folder.rglob("*"), MOST_FILES + 1))
    except OSError as error:
        raise InvalidCalibration(
            "the folder cannot be read", where=[str(error.filename or folder)], help=HOW
        ) from error
    if len(found) > MOST_FILES:
        raise InvalidCalibration(
            f"found more than {MOST_FILES:,} files, need the folder of a dataset",
            where=[str(folder)],
            help=HOW,
        )
    return found


def open_rows(files: DatasetFiles, columns: Sequence[str], *, blank: bool = False) -> Records:
    """Open arrow or parquet files; of a row just these columns are read.

    Rows with a null are left out, with ``blank`` also those that hold nothing but white space.

    Raises InvalidCalibration for damaged files and missing columns, QdcError without ``pyarrow``.
    """
    try:
        import pyarrow
        from pyarrow import dataset
    except ImportError as error:
        raise QdcError(
            f"{files.kind} files need pyarrow, which is not installed",
            where=[files.folder.name],
            help=f"{install('data')}, or give a .jsonl file",
        ) from error
    try:
        if files.kind == ARROW:
            tables = [_mapped(pyarrow, file) for file in files.data]
            table = pyarrow.concat_tables(tables)
        else:
            table = dataset.dataset(list(map(str, files.data)), format="parquet")
        _check_columns(table.schema.names, columns, files)
        table = table.select(columns) if files.kind == ARROW else table.to_table(list(columns))
        # Offsets of a file may point anywhere, and its text may be none: look before reading.
        table.validate(full=True)
        kept = _kept(pyarrow, table, blank=blank)
    except (pyarrow.ArrowException, OSError) as error:
        first = str(error).split("\n")[0]
        raise InvalidCalibration(
            f"the dataset cannot be read: {first}", where=[files.folder.name], help=HOW
        ) from error
    return _TableRows(table, kept)


class _TableRows:
    """Rows of a table that stays mapped, whatever is left out of it."""

    def __init__(self, table: Any, kept: Numbers) -> None:
        self.table, self.kept = table, kept
        self.skipped = int(table.num_rows) - len(kept)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, place: int) -> dict[str, Any]:
        [row] = self.table.slice(int(self.kept[place]), 1).to_pylist()
        found: dict[str, Any] = row
        return found

    def sizes(self, column: str, read: Callable[[int], str]) -> Numbers:
        from pyarrow import compute

        if not _is_text(self.table.schema.field(column).type):
            return np.array([len(read(place)) for place in range(len(self))], np.int64)
        parts = [compute.utf8_length(chunk) for chunk in self.table[column].chunks]
        every = [part.fill_null(0).to_numpy(zero_copy_only=False) for part in parts]
        found: Numbers = np.concatenate([np.zeros(0, np.int64), *every])[self.kept].astype(np.int64)
        return found


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _kept(pyarrow: Any, table: Any, *, blank: bool) -> Numbers:
    """Places of the rows that hold something."""
    from pyarrow import compute

    empty = np.zeros(table.num_rows, dtype=bool)
    for column in table.columns:
        start, text = 0, blank and _is_text(column.type)
        for chunk in column.chunks:
            here = empty[start : start + len(chunk)]
            here |= chunk.is_null().to_numpy(zero_copy_only=False)
            if text:
                nothing = compute.or_(
                    compute.equal(compute.utf8_length(chunk), 0), compute.utf8_is_space(chunk)
                )
                here |= nothing.fill_null(True).to_numpy(zero_copy_only=False).astype(bool)
            start += len(chunk)
    found: Numbers = np.flatnonzero(~empty)
    return found


def _mapped(pyarrow: Any, file: Path) -> Any:
    """Map an arrow file of either form: ``datasets`` writes streams, others write files."""
    source = pyarrow.memory_map(str(file))
    try:
        return pyarrow.ipc.open_stream(source).read_all()
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(source).read_all()


def _check_columns(there: Sequence[str], wanted: Sequence[str], files: DatasetFiles) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise InvalidCalibration(
            f"the field '{missing[0]}' is missing",
            where=[files.folder.name],
            help=nearest(missing[0], there),
        )


def _only_split(folder: Path) -> DatasetFiles:
    splits = [str(name) for name in _json(folder / SPLITS).get("splits", [])]
    there = [name for name in splits if Path(name).name == name and (folder / name).is_dir()]
    if len(there) == 1:
        return dataset_files(folder / there[0])
    raise InvalidCalibration(
        f"the dataset has {len(there)} splits, need one: {', '.join(there)}",
        where=[folder.name],
        help=f"give the folder of one, {folder / there[0]}" if there else HOW,
    )


def _saved(folder: Path) -> tuple[Path, ...]:
    entries = _json(folder / STATE).get("_data_files")
    names = [e.get("filename") for e in entries or [] if isinstance(e, dict)]
    files = tuple(folder / n for n in names if isinstance(n, str) and Path(n).name == n)
    absent = [file.name for file in files if not file.is_file()]
    if len(files) != len(names) or absent:
        raise InvalidCalibration(
            f"{STATE} names files that are not in the folder",
            where=absent or [folder.name],
            help="write the dataset again with save_to_disk",
        )
    if not files:
        raise InvalidCalibration("found no record, need at least 1", where=[folder.name], help=HOW)
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        found: object = parse_json(read_regular(path, LARGEST_JSON))
    except UnfitJson as error:
        raise InvalidCalibration(f"{path.name} {error}", where=[path.name], help=HOW) from error
    except (OSError, ValueError) as error:
        raise InvalidCalibration(f"{path.name} is no JSON", where=[path.name], help=HOW) from error
    return found if isinstance(found, dict) else {}
