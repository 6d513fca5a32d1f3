"""The report of a compile, put together from what it was asked and what it left."""

from datetime import UTC, datetime
from typing import Any

from qdc.artifact.commit import PAGE, artifact_digest, report_folder
from qdc.artifact.writer import ArtifactWriter
from qdc.checkpoint.folder import Checkpoint
from qdc.compiling.collect import (
    distilled,
    environment,
    file_reports,
    full_text,
    layer_reports,
    outside_reports,
    pass_reports,
    size_parts,
)
from qdc.compiling.instruments import Meter, Remarks
from qdc.compiling.job import Job
from qdc.frontend.coverage import coverage
from qdc.ir.graph import LayerGraph
from qdc.report.model import CompileReport
from qdc.streaming.calibration import Calibration
from qdc.streaming.workspace import Workspace
from qdc.text.tokenizer import Encoder


def compile_report(
    job: Job,
    workspace: Workspace,
    meter: Meter,
    remarks: Remarks,
    digest: str,
    writer: ArtifactWriter | None,
) -> CompileReport:
    """Everything but times and dumps.

    Args:
        job: what was asked for.
        workspace: at the end of the run.
        meter: what each pass has cost.
        remarks: what passes said.
        digest: of the checkpoint.
        writer: of the artifact, complete and not yet in its place; None if none is written.
    """
    graph = workspace.program.graph
    layers = sum(1 for _ in graph.layers())
    parts = () if writer is None else size_parts(graph, workspace.checkpoint.extra)
    reported = writer is not None and job.options.write_report
    return CompileReport(
        out=None if writer is None else str(job.out),
        report=str(report_folder(job.out) / PAGE) if reported else None,
        created=datetime.now(UTC).isoformat(" ", "seconds").replace("+00:00", " UTC"),
        **asked_for(job, graph, workspace.checkpoint, workspace.calibration, digest),
        calibration_text=tuple(workspace.text),
        calibration_states=tuple(workspace.sampled),
        calibration_certainty=tuple(workspace.certainty),
        artifact_sha256="" if writer is None else artifact_digest(writer.folder),
        layers=tuple(layer_reports(graph)),
        outside=tuple(outside_reports(graph)),
        distilled=distilled(graph),
        coverage=coverage(graph, workspace.checkpoint),
        passes=pass_reports(job.plan, meter.measured),
        remarks=remarks.lines(),
        bytes_after=0 if writer is None else writer.nbytes,
        tensor_bytes=0 if writer is None else writer.tensor_bytes,
        decoded=0 if writer is None else writer.decoded,
        predicted_bytes=sum(part.nbytes for part in parts),
        parts=parts,
        files=() if writer is None else file_reports(writer.files),
        peak_bytes=meter.look(workspace.device),
        layer_forwards=workspace.linear_calls / max(1, workspace.samples * layers),
        seconds=0.0,
    )


def asked_for(
    job: Job, graph: LayerGraph, checkpoint: Checkpoint, text: Calibration | None, digest: str
) -> dict[str, Any]:
    """The fields of a report that are known before any pass has run."""
    source = None if text is None else text.source
    encode = text.encode if text is not None and isinstance(text.encode, Encoder) else None
    return {
        "family": graph.model.family,
        "effort": job.effort,
        "pipeline": str(job.plan),
        "full_pipeline": full_text(job.plan),
        "backend": str(job.backend) if job.backend is not None else "",
        "device": job.device,
        "environment": environment(job.device),
        "checkpoint": job.title,
        "unused_fields": checkpoint.unused_fields,
        "assumed_fields": checkpoint.assumed_fields,
        "checkpoint_sha256": digest,
        "calibration": None if source is None else f"{source.name} sha256:{source.digest}",
        "calibration_left_out": "" if source is None else source.left_out,
        "calibration_form": "" if encode is None else encode.form,
        "special_tokens_left_out": "" if encode is None else encode.withheld,
        "plugins": tuple(job.registry.plugins),
        "bytes_before": checkpoint.nbytes,
    }
