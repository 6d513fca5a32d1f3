"""The compiler: checkpoint to graph, pipeline, artifact, report."""

import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import torch

from qdc.artifact.partial import Partial, repair
from qdc.artifact.rankfolder import Noted, RankFolder
from qdc.artifact.writer import ArtifactWriter
from qdc.checkpoint.folder import Checkpoint
from qdc.compiling.collect import full_text
from qdc.compiling.compose import compile_report
from qdc.compiling.dumper import Dumper
from qdc.compiling.finished import finished_report
from qdc.compiling.given import Given
from qdc.compiling.instruments import GraphVerifier, Meter, Remarks
from qdc.compiling.job import Job, plan_job
from qdc.compiling.making import Making
from qdc.compiling.options import CompileOptions
from qdc.compiling.origin import facts, identity
from qdc.compiling.repro import Repro
from qdc.compiling.resuming import Resumption
from qdc.compiling.runner import RegionDone, Runner
from qdc.compiling.savepoints import Savepoints
from qdc.compiling.ticker import Ticker
from qdc.compiling.timeleft import Expected
from qdc.distributed.handshake import from_first, same, total
from qdc.distributed.launch import joined
from qdc.distributed.world import World
from qdc.errors import QdcError
from qdc.ir.graph import ModelFacts
from qdc.ir.tensors import torch_dtype
from qdc.ir.verify import verify
from qdc.passkit.calibration import CalibrationOptions
from qdc.pipeline.maskless import refuse_masks
from qdc.pipeline.plan import Plan
from qdc.pipeline.registry import standard_registry
from qdc.pipeline.traversal import Traversal
from qdc.planning.expected import expected_seconds
from qdc.report.files import ReportWriter, discard_other_report, discard_report
from qdc.report.model import CompileReport
from qdc.runtime.device import exact_products, own_memory
from qdc.stopping import undisturbed
from qdc.streaming.calibration import Calibration
from qdc.streaming.states import StateStore
from qdc.streaming.workspace import Workspace
from qdc.units import StepProgress
from qdc.version import __version__

Shared = dict[str, int]
"""What the report says of the processes."""


def compile_model(
    options: CompileOptions,
    progress: StepProgress | None = None,
    command: str | None = None,
    given: Given | None = None,
) -> CompileReport:
    """Compile as the options say: what ``qdc.compile`` and ``qdc compile`` do.

    Args:
        options: what to compile, and how.
        progress: called with what is done, how much of it, and the total.
        command: how to run this again, for whoever reads a repro; the call in Python if not given.
        given: the module that is compiled, in the place of the options' folder.

    Raises:
        QdcError: the input is at fault; says what, where, and what to do.
    """
    with joined(options.device, ordered=options.deterministic_reduce) as world:
        if world.first and options.stop_after is None and repair(options.target):
            discard_other_report(options.target)
        registry = standard_registry(options.plugins)
        job = plan_job(options, registry, device=world.device, command=command, given=given)
        return run_job(job, progress, world)


def run_job(
    job: Job, progress: StepProgress | None = None, world: World | None = None
) -> CompileReport:
    """Compile. Either the artifact is complete at the end, or nothing has changed at its place.

    A compile that ends early leaves a folder to go on from as soon as a step is finished, and each
    of several processes one.

    Args:
        job: what to compile, and how.
        progress: told what is done.
        world: the processes that share the work, this one alone if not given; the first of them
            writes everything, and all return its report.

    Raises:
        QdcError: the checkpoint, the text, the weights or an interrupted compile are at fault.
    """
    started = time.perf_counter()
    notify = progress or (lambda what, done, total: None)
    world = world or World()
    checkpoint, program = job.open()
    job = job.fitted(program.graph.model)
    refuse_masks(job.plan, program.graph)
    for step in job.plan.passes():
        step.check(program.graph)
    if job.backend is not None:
        job.backend.check_model(checkpoint, job.registry)
    calibration = job.calibration()
    same(world, _agreed(job, checkpoint, calibration))
    if calibration is not None and not job.options.resume:
        _look_at_text(job.plan, calibration, program.graph.model)
    digest = from_first(
        world,
        lambda: checkpoint.scan(lambda done, total: notify("read the checkpoint", done, total)),
    )
    meter, remarks = Meter(job.plan), Remarks()
    places = job.dump_places if world.first else frozenset[int]()
    dumper = Dumper(job.plan, job.dump_folder, places, program.graph)
    repro = Repro(job.plan, job.repro_folder, job.command)
    memory = _statistics_memory(job, world)
    applications = Traversal(job.plan, program.graph, memory).applications
    ticker = Ticker(notify, applications, lambda: _expected(job, memory))
    instruments = (repro, ticker, meter, remarks, *job.instruments, dumper, GraphVerifier())
    with _partial(job, world) as partial, _scratch(job, partial) as scratch, exact_products():
        if job.options.resume:
            done = partial.journal is None if isinstance(partial, Partial) else False
            complete = _complete(
                world,
                lambda: (
                    finished_report(job, program, checkpoint, calibration, digest) if done else None
                ),
            )
            if complete is not None:
                return complete
        workspace = Workspace(
            program,
            checkpoint,
            torch.device(job.device),
            calibration,
            returns=job.plan.returns(),
            states=StateStore(torch_dtype(job.options.states), job.options.states_limit, scratch),
            world=world,
            tags=job.registry.annotations(),
            memory=memory,
        )
        if partial is None or job.backend is None:  # nobody asks for an artifact
            runner = Runner(job.plan, workspace, instruments, scratch)
            runner.run(_release(workspace))
            _verify(job, workspace)

            def without_artifact(shared: Shared) -> CompileReport:
                report = compile_report(job, workspace, meter, remarks, digest, None)
                return _timed(report, dumper, time.perf_counter() - started, shared)

            return _everywhere(world, workspace, without_artifact)
        made_from = _made_from(job, calibration, digest, checkpoint, world)
        runner = Runner(job.plan, workspace, instruments, partial.kept, keep=True)
        making = None
        if isinstance(partial, Partial):
            origin = facts(job, calibration, digest, checkpoint, causal=program.graph.model.causal)
            making = Making(job.out, job.backend, partial, workspace, origin, job.options.force)
        savepoints = Savepoints(
            partial,
            runner,
            None if making is None else making.writer,
            (meter, remarks),
            made_from,
            started,
            _run_of(partial, world),
        )
        region_done = _release(workspace) if making is None else making.region_done
        first = 0
        if partial.journal is not None:
            resumption = Resumption(savepoints, partial.journal, job.registry.annotations())
            first = resumption.restore(region_done, (repro, GraphVerifier()))
            ticker.go_on(sum(row.units for row in meter.measured))
        runner.run(region_done, savepoints.save, first)
        _verify(job, workspace)
        if making is not None:
            making.finish()

        def finished(shared: Shared) -> CompileReport:
            assert making is not None
            assert isinstance(partial, Partial)
            report = compile_report(job, workspace, meter, remarks, digest, making.writer)
            report = report.model_copy(update={"resumed": savepoints.resumed})
            report = _timed(report, dumper, savepoints.seconds, shared)
            _commit(job, partial, making.writer, report)
            return report

        return _everywhere(world, workspace, finished)


def _made_from(
    job: Job, calibration: Calibration | None, digest: str, checkpoint: Checkpoint, world: World
) -> dict[str, str]:
    """What a compile that goes on must have the same of; of several processes their number too."""
    found = identity(job, calibration, digest, checkpoint)
    if world.size > 1:
        found |= {"processes": str(world.size), "deterministic-reduce": str(world.ordered)}
    return found


def _run_of(partial: Partial | RankFolder, world: World) -> str:
    """What the journals of all processes have in common; nothing where there is one process."""
    if world.size == 1:
        return ""
    mine = secrets.token_hex(16) if partial.journal is None else partial.journal.run
    return from_first(world, lambda: mine)


def _complete(world: World, look: Callable[[], CompileReport | None]) -> CompileReport | None:
    """The report of the artifact that is there already, if the first process finds it, in all."""

    def text() -> str:
        found = look()
        return "" if found is None else found.model_dump_json()

    answer = from_first(world, text)
    return CompileReport.model_validate_json(answer) if answer else None


def _statistics_memory(job: Job, world: World) -> int:
    """What the statistics of a wave may take: what the process with the least has."""
    mine = job.options.statistics_limit(own_memory(torch.device(job.device)))
    return min(int(answer) for answer in world.agree(str(mine).encode()))


def _everywhere(
    world: World, workspace: Workspace, make: Callable[[Shared], CompileReport]
) -> CompileReport:
    """The report that the first process makes, in all of them."""
    calls, sent = total(world, workspace.linear_calls, world.sent)
    workspace.linear_calls = calls
    shared: Shared = {"processes": world.size, "sent_bytes": int(sent)}
    text = from_first(world, lambda: make(shared).model_dump_json())
    return CompileReport.model_validate_json(text)


def _look_at_text(plan: Plan, calibration: Calibration, model: ModelFacts) -> None:
    """Draw what passes will ask for, before the first of them takes its time.

    Raises ``InvalidCalibration`` for a text that is too short, too little, or of other tokens.
    """
    for step in plan.passes():
        if isinstance(step, CalibrationOptions) and step.reads_calibration:
            step.draw_clean(calibration, model)


def _agreed(job: Job, checkpoint: Checkpoint, calibration: Calibration | None) -> dict[str, str]:
    """What every process of a compile must have the same of."""
    return {
        "qdc": __version__,
        "checkpoint": repr((checkpoint.config, sorted(checkpoint.headers.items()))),
        "calibration text": "" if calibration is None else calibration.source.digest,
        "pipeline": full_text(job.plan),
        "front end": job.frontend(checkpoint),
        "backend": str(job.backend),
        "plugins": repr(job.registry.plugins),
        "states": job.options.states,
        "special tokens": job.options.document_tokens,
        "tokenizer": ""
        if calibration is None
        else repr(list(checkpoint.tokenizer_digests().items())),
    }


def _release(workspace: Workspace) -> RegionDone:
    """What is done with a finished region where nobody writes it."""
    return lambda region: workspace.release(region.nodes, scratch=False)


def _verify(job: Job, workspace: Workspace) -> None:
    graph = workspace.program.graph
    graph.after = str(job.plan)
    verify(graph, workspace.tensors)


def _timed(report: CompileReport, dumper: Dumper, seconds: float, shared: Shared) -> CompileReport:
    dumps = tuple(map(str, dumper.write()))
    return report.model_copy(update={"dumps": dumps, "seconds": seconds, **shared})


def _commit(job: Job, partial: Partial, writer: ArtifactWriter, report: CompileReport) -> None:
    """Make the artifact appear, and its report with it."""
    pages = ReportWriter(job.out, partial.report) if job.options.write_report else None
    if pages is not None:
        pages.stage(report)
    partial.note_commit()
    with undisturbed():
        writer.commit()
        if pages is None:
            discard_report(job.out)
        else:
            pages.commit()


@contextmanager
def _partial(job: Job, world: World) -> Iterator[Partial | RankFolder | None]:
    """The folder of this process, in the first the one of the artifact; None if none is made."""
    if job.backend is None:
        yield None
        return
    resume, restart = job.options.resume, job.options.restart
    if world.size == 1:
        with Partial(job.out, resume=resume, restart=restart) as partial:
            yield partial
        return
    if world.first:
        with Partial(job.out, resume=resume, restart=restart) as partial:
            journal = partial.journal
            known = None if journal is None or not journal.run else journal
            noted = None if known is None else [known.run, len(known.entries)]
            world.agree(msgpack.packb(noted))
            yield partial
        return
    (answer, *_) = world.agree()
    found = msgpack.unpackb(answer)
    with RankFolder(job.out, world.rank, None if found is None else Noted(*found)) as own:
        yield own


@contextmanager
def _scratch(job: Job, partial: Partial | RankFolder | None) -> Iterator[Path]:
    """Yield a folder for what waits: beside what will be written, where there is room."""
    if partial is not None:
        yield partial.scratch
        return
    beside = job.dump_folder.absolute().parent
    with tempfile.TemporaryDirectory(
        prefix=".qdc-", dir=beside if beside.is_dir() else None
    ) as folder:
        yield Path(folder)


def _expected(job: Job, memory: int) -> Expected | None:
    """What each application of a pass may take; None where that is not known beforehand."""
    if job.given is not None:  # to trace a module once more could take longer than it tells
        return None
    try:
        _, program = job.open()
        device = torch.device(job.device)
        return expected_seconds(program, job.plan, device, job.options.states, memory)
    except QdcError:
        return None
