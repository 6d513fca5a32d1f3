"""``qdc verify``: whether an artifact is as it was written."""

import typer

from qdc.cli.options import VerifyOptions
from qdc.cli.report import matches_report
from qdc.cli.terminal import console, print_json, print_lines, progress
from qdc.pipeline.registry import standard_registry
from qdc.runtime.integrity import Integrity, examine


def verify_command(options: VerifyOptions, *, as_json: bool) -> None:
    """Read everything, print what was found; exit code 1 if something is damaged."""
    registry = standard_registry(options.plugins)
    with progress() as update:
        found = examine(options.artifact, registry, update)
    report = matches_report(options.artifact)
    if as_json:
        print_json({**found.model_dump(mode="json"), "whole": found.whole, "report": report})
    else:
        print_lines(console(), *_lines(found, report))
    if not found.whole:
        raise typer.Exit(1)


def _lines(found: Integrity, report: bool | None) -> list[str]:
    count = len(found.damaged)
    state = "as it was written" if found.whole else f"damaged, {count} file{'s' * (count > 1)}"
    if found.whole and not found.files:
        state = "without digests of its files (qdc.sha256); nothing that can be compared differs"
    lines = [
        f"{found.artifact} is {state}",
        f"  {found.files} files have been compared, and {found.tensors} tensors with the IR dump",
    ]
    for damage in found.damaged:
        lines += [f"  damaged   {damage.file}", *(f"            {p}" for p in damage.problems)]
    lines += [f"  no digest {name}" for name in found.unverified]
    if report is not None:
        lines.append(f"  the report beside it is {'its own' if report else 'of another artifact'}")
    return lines
