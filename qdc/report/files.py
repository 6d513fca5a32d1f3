"""``OUT-report/report.json`` and ``report.html``: beside the artifact, never inside it.

The artifact's own files depend on inputs and options alone; a report has dates and times. It is
written in full before the artifact appears, and put in place right after. A process that is killed
between the two leaves the report where the next one finds it.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from qdc.artifact.commit import DATA, PAGE, artifact_digest, place_report, report_folder
from qdc.disk import LARGEST_JSON, open_folder, read_regular, replace_bytes, write_bytes
from qdc.errors import OutputExists, QdcError
from qdc.jsontext import parse_json
from qdc.report.model import CompileReport

ESCAPED = "backslashreplace"
"""How a file name that is no Unicode is written; valid JSON, too."""


def check_report_target(out: Path) -> None:
    """Refuse a place that something else has taken. Raises ``OutputExists``."""
    folder = report_folder(out)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or folder.is_symlink():
        raise OutputExists(
            f"{folder} is there and is no folder", help="remove it, or choose another -o"
        )
    if any(os.path.lexists(folder / name) for name in (DATA, PAGE)) and not _is_report(folder):
        raise OutputExists(
            f"{folder} holds a {DATA} or {PAGE} that qdc did not write",
            help="remove it, or choose another -o",
        )


def _is_report(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, TypeError):
        data = parse_json(read_regular(folder / DATA, LARGEST_JSON))
        return isinstance(data, dict) and {"schema_version", "full_pipeline"} <= set(data)
    return False


class ReportWriter:
    """Both files in the making: ``stage`` writes them aside, ``commit`` puts them in place."""

    def __init__(self, out: Path, aside: Path) -> None:
        """Check the place. Raises ``OutputExists``.

        Args:
            out: the artifact.
            aside: a folder that is not there yet, in the same file system: the files wait in it.
        """
        check_report_target(out)
        self.out, self.folder, self.aside = out, report_folder(out), aside

    def stage(self, report: CompileReport) -> None:
        """Write both files aside and sync them. Raises ``QdcError``."""
        files = _contents(report)
        try:
            self.aside.mkdir()
            for name, data in files.items():
                write_bytes(self.aside / name, data)
            open_folder(self.aside)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def commit(self) -> None:
        """Put what was staged in place of an older report. Raises ``QdcError``."""
        try:
            place_report(self.aside, self.out)
        except OSError as error:
            raise _unwritable(self.folder, error) from error


def _contents(report: CompileReport) -> dict[str, bytes]:
    """Both files, the page first: whoever finds the data finds its page."""
    from qdc.report.page import render

    return {
        PAGE: render(report).encode("utf-8", ESCAPED),
        DATA: to_json(report).encode("utf-8", ESCAPED),
    }


def discard_report(out: Path) -> None:
    """Remove the report of an artifact that another has replaced."""
    folder = report_folder(out)
    if not folder.is_dir() or folder.is_symlink() or not _is_report(folder):
        return
    for name in (DATA, PAGE):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it may hold what others have put there
        folder.rmdir()


def discard_other_report(out: Path) -> None:
    """Remove a report that says that it is of another artifact than the one at ``out``."""
    with contextlib.suppress(QdcError):
        if read_report(report_folder(out)).artifact_sha256 != artifact_digest(out):
            discard_report(out)


def write_report(report: CompileReport, out: Path) -> Path:
    """Write both files for the artifact ``out`` and return the page. Raises ``QdcError``."""
    check_report_target(out)
    folder, files = report_folder(out), _contents(report)
    try:
        folder.mkdir(exist_ok=True)
        with _alone(folder):
            for name, data in files.items():
                replace_bytes(folder / name, data)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder / PAGE


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process writes a report into the folder. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_report(path: Path) -> CompileReport:
    """Read the report of an artifact, or a report's folder or file. Raises ``QdcError``."""
    choices = (path, path / DATA, report_folder(path) / DATA)
    found = next((choice for choice in choices if choice.is_file()), None)
    if found is None:
        raise QdcError(
            f"{path} has no report",
            where=[str(report_folder(path) / DATA)],
            help="give the OUT of qdc compile; compile again if its report is gone",
        )
    try:
        data = parse_json(read_regular(found, LARGEST_JSON))
    except (OSError, ValueError) as error:
        raise QdcError(
            f"cannot read the report: {error}", where=[str(found)], help="compile again"
        ) from error
    if not isinstance(data, dict):
        raise QdcError("the report is no JSON object", where=[str(found)], help="compile again")
    return CompileReport.from_data(data, str(found))


def to_json(report: CompileReport) -> str:
    """What stands in ``report.json``: what ``qdc compile --json`` prints."""
    return json.dumps(report.as_data(), indent=2, ensure_ascii=False) + "\n"


def _unwritable(path: Path, error: OSError) -> QdcError:
    reason = (error.strerror or str(error)).lower()
    return QdcError(f"cannot write to {path}: {reason}", help="choose another -o")
