"""``OUT-report/report.json`` and ``report.html``: beside the artifact, never inside it.

The artifact's own files depend on inputs and options alone; a report has dates and times. It is
written in full before the artifact appears, and put in place right after.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from qdc.disk import LARGEST_JSON, open_folder, read_regular
from qdc.errors import OutputExists, QdcError
from qdc.jsontext import parse_json
from qdc.report.model import CompileReport

LARGEST = 1 << 28
DATA, PAGE = "report.json", "report.html"
ESCAPED = "backslashreplace"
"""How a file name that is no Unicode is written; valid JSON, too."""


def report_folder(out: Path) -> Path:
    """Where the report of the artifact ``out`` lies."""
    out = out.absolute()
    return out.with_name(f"{out.name}-report")


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

    def __init__(self, out: Path) -> None:
        """Check the place. Raises ``OutputExists``."""
        check_report_target(out)
        self.folder = report_folder(out)
        self._aside: Path | None = None

    def stage(self, report: CompileReport) -> None:
        """Write both files into a folder beside the place. Raises ``QdcError``."""
        from qdc.report.page import render

        try:
            self._aside = Path(
                tempfile.mkdtemp(prefix=f".{self.folder.name}.", dir=self.folder.parent)
            )
            (self._aside / DATA).write_text(to_json(report), "utf-8", ESCAPED)
            (self._aside / PAGE).write_text(render(report), "utf-8", ESCAPED)
            open_folder(self._aside)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def commit(self) -> None:
        """Put what was staged in place of an older report. Raises ``QdcError``."""
        if self._aside is None:
            return
        try:
            if self.folder.is_dir():
                for name in (DATA, PAGE):
                    (self._aside / name).replace(self.folder / name)
            else:
                self._aside.rename(self.folder)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def abort(self) -> None:
        """Remove what was staged and not put in place."""
        if self._aside is not None:
            shutil.rmtree(self._aside, ignore_errors=True)


def discard_report(out: Path) -> None:
    """Remove the report of an artifact that another has replaced."""
    folder = report_folder(out)
    if not folder.is_dir() or folder.is_symlink() or not _is_report(folder):
        return
    for name in (DATA, PAGE):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it may hold what others have put there
        folder.rmdir()


def write_report(report: CompileReport, out: Path) -> Path:
    """Write both files for the artifact ``out`` and return the page. Raises ``QdcError``."""
    writer = ReportWriter(out)
    try:
        writer.stage(report)
        writer.commit()
    finally:
        writer.abort()
    return writer.folder / PAGE


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


def artifact_digest(folder: Path) -> str:
    """SHA-256 over names and bytes of the files other than shards.

    Among them is the IR dump, which names the digest of every packed tensor. Raises ``QdcError``
    for a file that cannot be read, or is larger than any of them can be.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix != ".safetensors" and path.is_file():
            try:
                data = read_regular(path, LARGEST)
            except OSError as error:
                reason = (error.strerror or "unknown reason").lower()
                raise QdcError(f"cannot read {path.name}: {reason}", where=[str(path)]) from error
            digest.update(f"{path.name}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest()


def _unwritable(path: Path, error: OSError) -> QdcError:
    reason = (error.strerror or str(error)).lower()
    return QdcError(f"cannot write to {path}: {reason}", help="choose another -o")
