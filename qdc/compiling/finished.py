"""Whether the artifact that a compile was to make is there already, for ``--resume``.

An artifact says what it was made from. If that is what this compile has been given, there is
nothing to do, and whoever tries again until it succeeds may stop.
"""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from qdc.artifact.commit import artifact_digest, report_folder
from qdc.artifact.config import QUANTIZATION
from qdc.artifact.digests import Digests
from qdc.artifact.writer import DUMP, is_artifact
from qdc.checkpoint.folder import Checkpoint
from qdc.compiling.collect import (
    file_reports,
    layer_reports,
    outside_reports,
    pass_reports,
    size_parts,
)
from qdc.compiling.compose import asked_for
from qdc.compiling.instruments import Meter
from qdc.compiling.job import Job
from qdc.compiling.origin import facts
from qdc.disk import digest_of
from qdc.errors import OutputExists, QdcError
from qdc.frontend.coverage import coverage
from qdc.frontend.tracer import Program
from qdc.ir.dump import read
from qdc.ir.types import BYTES
from qdc.report.files import discard_other_report, read_report
from qdc.report.model import CompileReport
from qdc.streaming.calibration import Calibration

log = logging.getLogger(__name__)
UNUSUAL = ("document_tokens",)
"""What an artifact names only if it is not as usual; lacking now, it is another than before."""


def finished_report(
    job: Job,
    program: Program,
    checkpoint: Checkpoint,
    calibration: Calibration | None,
    digest: str,
) -> CompileReport | None:
    """The report of the artifact that is in place, if it is the one that was asked for.

    It says so in a line. Without its report, times and memory are zero, and what else it says is
    read off the artifact.

    Args:
        job: what was asked for.
        program: the model, on which no pass has run.
        checkpoint: its folder.
        calibration: the text.
        digest: of the checkpoint.

    Returns:
        None if no artifact is there, or another that may be replaced.

    Raises:
        OutputExists: an artifact of other inputs or options is there, or a damaged one.
    """
    out = job.out
    if not is_artifact(out):
        return None
    changed = list(_changes(out, facts(job, calibration, digest, checkpoint), checkpoint))
    if changed:
        if job.options.force:
            return None
        raise OutputExists(
            f"{out} is there already, and it is not what this compile would make",
            where=changed,
            help="choose another -o, or replace it with --force",
        )
    log.warning("%s is complete: there is nothing to resume", out)
    discard_other_report(out)
    try:
        return read_report(report_folder(out))
    except QdcError:
        return _read_off(job, program, checkpoint, calibration, digest)


def _changes(out: Path, made_from: dict[str, object], checkpoint: Checkpoint) -> list[str]:
    """What the artifact says of its origin that is another now, and what it lacks."""
    try:
        digests = Digests.of(out)
        digests.check(digests.listed or ())
        there = Checkpoint(out)
    except QdcError as error:
        return [f"it is damaged: {error.what}", *error.where]
    if digests.listed is None:
        return ["it has no digests: the qdc that wrote it may have had other defaults"]
    said = there.config.get(QUANTIZATION, {})
    now = {**dict.fromkeys(UNUSUAL), **json.loads(json.dumps(made_from))}
    changed = [
        f"{name}: {_short(said.get(name))} -> {_short(value)}"
        for name, value in now.items()
        if said.get(name) != value
    ]
    for name, sha256 in checkpoint.tokenizer_digests().items():
        if sha256 != digest_of(out / name):
            changed.append(f"{name} is another")
    if not (out / DUMP).is_file() and str(made_from["backend"]) == "reference":
        changed.append(f"it lacks {DUMP}")
    return changed


def _short(value: object) -> str:
    return "none" if value is None else str(value)[:80]


def _read_off(
    job: Job,
    program: Program,
    checkpoint: Checkpoint,
    calibration: Calibration | None,
    digest: str,
) -> CompileReport:
    """What a report says, read off an artifact that has none."""
    out = job.out
    dump = out / DUMP
    graph = read(dump, job.registry.annotations()) if dump.is_file() else program.graph
    parts, files = size_parts(graph, checkpoint.extra), file_reports(sorted(out.iterdir()))
    headers = Checkpoint(out).headers.values()
    tensor_bytes = sum(header.elements({}) * BYTES[header.dtype] for header in headers)
    return CompileReport(
        out=str(out),
        created=datetime.fromtimestamp(out.stat().st_mtime, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        **asked_for(job, graph, checkpoint, calibration, digest),
        artifact_sha256=artifact_digest(out),
        layers=tuple(layer_reports(graph)),
        outside=tuple(outside_reports(graph)),
        coverage=coverage(graph, checkpoint),
        passes=pass_reports(job.plan, Meter(job.plan).measured),
        remarks=(),
        bytes_after=sum(file.nbytes for file in files),
        tensor_bytes=tensor_bytes,
        predicted_bytes=sum(part.nbytes for part in parts),
        parts=parts,
        files=files,
        layer_forwards=0.0,
        seconds=0.0,
    )
