"""``qdc report``: write the page of a compile again; and the report that an evaluation adds to."""

import sys
from pathlib import Path

from qdc.artifact.commit import PAGE, artifact_digest, report_folder
from qdc.cli.terminal import print_json
from qdc.errors import QdcError
from qdc.report.files import ESCAPED, read_report
from qdc.report.model import CompileReport


def report_command(path: Path, out: Path | None, as_json: bool) -> None:
    """Render again, or print the data."""
    report = read_report(path)
    if as_json:
        if out is not None:
            raise QdcError("--json prints data, and --out writes a page", help="leave one out")
        print_json(report.as_data())
        return
    from qdc.report.page import render

    target = _page_of(path) if out is None else out
    text = render(report)
    try:
        target.write_text(text, "utf-8", ESCAPED)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise QdcError(f"cannot write to {target}: {reason}", help="choose another -o") from error
    sys.stdout.write(f"{target}\n")


def report_of(artifact: Path) -> CompileReport:
    """Read the report of an artifact and check that it belongs to it. Raises ``QdcError``."""
    report = read_report(artifact)
    if report.artifact_sha256 != artifact_digest(artifact):
        raise QdcError(
            "the report is of another artifact",
            where=[str(report_folder(artifact))],
            help="compile again, or leave --report out",
        )
    return report


def matches_report(artifact: Path) -> bool | None:
    """Whether the report beside an artifact is of its files; None if there is none to read."""
    try:
        report = read_report(report_folder(artifact))
        return report.artifact_sha256 == artifact_digest(artifact)
    except QdcError:
        return None


def _page_of(path: Path) -> Path:
    if path.is_file():
        return path.with_name(PAGE)
    return path / PAGE if (path / "report.json").is_file() else report_folder(path) / PAGE
