"""The compiler: checkpoint to graph, pipeline, artifact, report."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from qdc import __version__
from qdc.artifact.emission import Emission
from qdc.artifact.writer import ArtifactWriter
from qdc.calibration.text import read_source
from qdc.calibration.tokenizer import encoder, load_tokenizer
from qdc.distributed.handshake import from_first, same, total
from qdc.distributed.world import World
from qdc.frontend.checkpoint import Checkpoint
from qdc.frontend.coverage import check_tensors, coverage, mark_kept
from qdc.frontend.tracer import Program, trace
from qdc.ir.graph import Region
from qdc.ir.tensors import torch_dtype
from qdc.ir.verify import verify
from qdc.job import Job
from qdc.models.families import build
from qdc.pipeline.dumper import Dumper
from qdc.pipeline.instruments import Instrument, Meter, Remarks, Verifier
from qdc.pipeline.plan import Plan
from qdc.pipeline.repro import Repro
from qdc.pipeline.runner import Runner
from qdc.pipeline.workspace import Calibration, Workspace
from qdc.report import CompileReport, layer_reports
from qdc.report.collect import (
    environment,
    file_reports,
    full_text,
    outside_reports,
    pass_reports,
    size_parts,
)
from qdc.report.files import (
    PAGE,
    ReportWriter,
    artifact_digest,
    discard_report,
    report_folder,
)
from qdc.runtime.device import exact_products
from qdc.runtime.load import refuse_compiled

Progress = Callable[[str, int, int], None]
"""``(what, done, total)``."""


def run_job(
    job: Job, progress: Progress | None = None, world: World | None = None
) -> CompileReport:
    """Compile. Either the artifact is complete at the end, or nothing has changed.

    Args:
        job: what to compile, and how.
        progress: told what is done.
        world: the processes that share the work, this one alone if not given; the first of them
            writes everything, and all return its report.

    Raises:
        QdcError: the checkpoint, the text or the weights are at fault.
    """
    started = time.perf_counter()
    notify = progress or (lambda what, done, total: None)
    world = world or World()
    checkpoint, program = open_model(job.model)
    for step in job.plan.passes():
        step.check(program.graph)
    calibration = _calibration(job)
    same(world, _agreed(job, checkpoint, calibration))
    digest = from_first(
        world,
        lambda: checkpoint.scan(lambda done, total: notify("read the checkpoint", done, total)),
    )
    workspace = Workspace(
        program,
        checkpoint,
        torch.device(job.device),
        calibration,
        returns=job.plan.returns(),
        states=torch_dtype(job.states),
        world=world,
        tags=job.registry.annotations(),
    )
    meter, remarks = Meter(job.plan), Remarks()
    places = job.dump_places if world.first else frozenset[int]()
    dumper = Dumper(job.plan, job.dump_folder, places, program.graph)
    repro = Repro(job.plan, job.repro_folder, job.command)
    ticker = _Ticker(notify, job.plan, program)
    instruments = (repro, ticker, meter, remarks, *job.instruments, dumper, Verifier())
    with _writer(job, world) as writer, _scratch(job) as scratch, exact_products():
        emission = None
        if writer is not None:
            facts = _facts(job, calibration, digest)
            emission = Emission(program.graph, workspace.tensors, checkpoint, writer, facts)

        def region_done(region: Region) -> None:
            if emission is not None and job.backend is not None:
                job.backend.emit_region(emission, region)
            workspace.release(region)

        Runner(job.plan, workspace, instruments, scratch).run(region_done)
        program.graph.after = str(job.plan)
        verify(program.graph, workspace.tensors)
        if emission is not None and job.backend is not None:
            job.backend.finish(emission)
        workspace.linear_calls, sent = total(world, workspace.linear_calls, world.sent)

        def finished() -> str:
            report = _report(job, workspace, meter, remarks, digest, writer).model_copy(
                update={
                    "dumps": tuple(map(str, dumper.write())),
                    "processes": world.size,
                    "sent_bytes": sent,
                    "seconds": time.perf_counter() - started,
                }
            )
            if writer is not None:
                _commit(job, writer, report)
            return report.model_dump_json()

        return CompileReport.model_validate_json(from_first(world, finished))


def _agreed(job: Job, checkpoint: Checkpoint, calibration: Calibration | None) -> dict[str, str]:
    """What every process of a compile must have the same of."""
    return {
        "qdc": __version__,
        "checkpoint": repr((checkpoint.config, sorted(checkpoint.headers.items()))),
        "calibration text": "" if calibration is None else calibration.source.digest,
        "pipeline": full_text(job.plan),
        "backend": str(job.backend),
        "plugins": repr(job.registry.plugins),
        "states": job.states,
    }


def _commit(job: Job, writer: ArtifactWriter, report: CompileReport) -> None:
    """Make the artifact appear, and its report with it."""
    if not job.report:
        writer.commit()
        discard_report(job.out)
        return
    pages = ReportWriter(job.out)
    try:
        pages.stage(report)
        writer.commit()
        pages.commit()
    finally:
        pages.abort()


def open_model(folder: Path) -> tuple[Checkpoint, Program]:
    """Read headers, trace the model on the meta device, and check that every tensor has a place.

    Raises:
        InvalidCheckpoint: tensors are missing, unmapped or of the wrong shape.
        UnsupportedModel: the family is not implemented.
    """
    checkpoint = Checkpoint(folder)
    refuse_compiled(checkpoint)
    module, facts = build(checkpoint.config)
    program = trace(module, facts, checkpoint)
    check_tensors(program.graph, checkpoint)
    mark_kept(program.graph)
    return checkpoint, program


def _calibration(job: Job) -> Calibration | None:
    if not any(step.reads_calibration for step in job.plan.passes()):
        return None
    source = read_source(job.calibration, job.fields)
    return Calibration(source, encoder(load_tokenizer(job.model)))


def _facts(job: Job, calibration: Calibration | None, digest: str) -> dict[str, object]:
    """What the artifact's configuration says of its origin."""
    source = None if calibration is None else calibration.source
    return {
        "qdc_version": __version__,
        "pipeline": str(job.plan),
        "backend": str(job.backend),
        "checkpoint_sha256": digest,
        "states": job.states,
        "calibration": source
        and {
            "name": source.name,
            "sha256": source.digest,
            "fields": list(job.fields.chat or (job.fields.text,)),
        },
        "plugins": job.registry.plugins,
    }


def _report(
    job: Job,
    workspace: Workspace,
    meter: Meter,
    remarks: Remarks,
    digest: str,
    writer: ArtifactWriter | None,
) -> CompileReport:
    graph, text = workspace.program.graph, workspace.calibration
    source = None if text is None else f"{text.source.name} sha256:{text.source.digest}"
    layers = sum(1 for _ in graph.layers())
    parts = () if writer is None else size_parts(graph)
    return CompileReport(
        out=None if writer is None else str(job.out),
        report=str(report_folder(job.out) / PAGE) if writer is not None and job.report else None,
        created=datetime.now(UTC).isoformat(" ", "seconds").replace("+00:00", " UTC"),
        family=graph.model.family,
        pipeline=str(job.plan),
        full_pipeline=full_text(job.plan),
        backend=str(job.backend) if job.backend is not None else "",
        device=job.device,
        environment=environment(job.device),
        checkpoint=str(job.model.absolute()),
        checkpoint_sha256=digest,
        calibration=source,
        artifact_sha256="" if writer is None else artifact_digest(writer.folder),
        plugins=tuple(job.registry.plugins),
        layers=tuple(layer_reports(graph)),
        outside=tuple(outside_reports(graph)),
        coverage=coverage(graph),
        passes=pass_reports(job.plan, meter.measured),
        remarks=tuple(map(str, remarks.found)),
        bytes_before=workspace.checkpoint.nbytes,
        bytes_after=0 if writer is None else writer.nbytes,
        tensor_bytes=0 if writer is None else writer.tensor_bytes,
        predicted_bytes=sum(part.nbytes for part in parts),
        parts=parts,
        files=() if writer is None else file_reports(writer.folder),
        layer_forwards=workspace.linear_calls / max(1, workspace.samples * layers),
        seconds=0.0,
    )


@contextlib.contextmanager
def _scratch(job: Job) -> Iterator[Path]:
    """Yield a folder for what waits between segments: beside the artifact, where there is room."""
    parent = None if job.backend is None else job.out.absolute().parent
    if parent is not None and not parent.is_dir():
        parent = None  # of a process on another machine
    with tempfile.TemporaryDirectory(prefix=".qdc-", dir=parent) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _writer(job: Job, world: World) -> Iterator[ArtifactWriter | None]:
    if job.backend is None or not world.first:
        yield None
        return
    writer = ArtifactWriter(job.out, force=job.force)
    try:
        yield writer
    finally:
        writer.abort()


class _Ticker(Instrument):
    """Count pass applications for the progress bar."""

    def __init__(self, notify: Progress, plan: Plan, program: Program) -> None:
        self.notify, self.done = notify, 0
        self.total = plan.applications(program.graph)

    def after(self, place: int, unit: object) -> None:
        """One more application is done."""
        self.done += 1
        self.notify("run the passes", self.done, self.total)
