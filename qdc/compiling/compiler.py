"""The compiler: checkpoint to graph, pipeline, artifact, report."""

import time
from collections.abc import Sequence

import torch

from qdc.artifact.partial import Partial, repair
from qdc.compiling.agreement import (
    Shared,
    agreed,
    complete_report,
    made_from,
    run_of,
    shared_report,
    statistics_memory,
)
from qdc.compiling.compose import compile_report
from qdc.compiling.dumper import Dumper
from qdc.compiling.finished import finished_report
from qdc.compiling.folders import own_folder, scratch_folder
from qdc.compiling.given import Given
from qdc.compiling.instruments import GraphVerifier, Meter, Remarks
from qdc.compiling.job import Job, plan_job
from qdc.compiling.making import Making
from qdc.compiling.options import CompileOptions
from qdc.compiling.origin import facts
from qdc.compiling.repro import Repro
from qdc.compiling.resuming import Resumption
from qdc.compiling.runner import RegionDone, Runner
from qdc.compiling.savepoints import Savepoints
from qdc.compiling.ticker import Ticker
from qdc.compiling.timeleft import Expected
from qdc.distributed.handshake import from_first, same
from qdc.distributed.launch import joined
from qdc.distributed.world import World
from qdc.errors import QdcError
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import Region
from qdc.ir.tensors import torch_dtype
from qdc.ir.verify import verify
from qdc.passkit.calibration import CalibrationOptions
from qdc.pipeline.maskless import refuse_masks
from qdc.pipeline.plan import Plan
from qdc.pipeline.registry import standard_registry
from qdc.pipeline.traversal import Traversal
from qdc.planning.expected import expected_seconds
from qdc.report.files import discard_other_report
from qdc.report.model import CompileReport
from qdc.runtime.device import exact_products
from qdc.streaming.calibration import Calibration
from qdc.streaming.states import StateStore
from qdc.streaming.workspace import Workspace
from qdc.units import StepProgress


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
    same(world, agreed(job, checkpoint, calibration))
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
    memory = statistics_memory(job, world)
    applications = Traversal(job.plan, program.graph, memory).applications
    ticker = Ticker(notify, applications, lambda: _expected(job, memory))
    instruments = (repro, ticker, meter, remarks, *job.instruments, dumper, GraphVerifier())
    with own_folder(job, world) as own, scratch_folder(job, own) as scratch, exact_products():
        if job.options.resume:
            done = own.journal is None if isinstance(own, Partial) else False
            complete = complete_report(
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
        if own is None or job.backend is None:  # nobody asks for an artifact
            runner = Runner(job.plan, workspace, instruments, scratch)
            runner.run(_release(workspace))
            _verify(job, workspace)

            def without_artifact(shared: Shared) -> CompileReport:
                report = compile_report(job, workspace, meter, remarks, digest, None)
                return _timed(report, dumper, time.perf_counter() - started, shared)

            return shared_report(world, workspace, without_artifact)
        runner = Runner(job.plan, workspace, instruments, own.kept, keep=True)
        making = None
        if isinstance(own, Partial):
            origin = facts(job, calibration, digest, checkpoint, causal=program.graph.model.causal)
            making = Making(job.out, job.backend, own, workspace, origin, job.options.force)
        savepoints = Savepoints(
            own,
            runner,
            None if making is None else making.writer,
            (meter, remarks),
            made_from(job, calibration, digest, checkpoint, world),
            started,
            run_of(own, world),
        )
        region_done = _handed_on(workspace, making)
        first = 0
        if own.journal is not None:
            resumption = Resumption(savepoints, own.journal, job.registry.annotations())
            first = resumption.restore(region_done, (repro, GraphVerifier()))
            ticker.go_on(sum(row.units for row in meter.measured))
        runner.run(region_done, savepoints.save, first)
        _verify(job, workspace)
        _gather(workspace, workspace.outside)
        if making is not None:
            making.finish()

        def finished(shared: Shared) -> CompileReport:
            assert making is not None
            report = compile_report(job, workspace, meter, remarks, digest, making.writer)
            report = report.model_copy(update={"resumed": savepoints.resumed})
            report = _timed(report, dumper, savepoints.seconds, shared)
            making.commit(report, write_report=job.options.write_report)
            return report

        return shared_report(world, workspace, finished)


def _look_at_text(plan: Plan, calibration: Calibration, model: ModelFacts) -> None:
    """Draw what passes will ask for, before the first of them takes its time.

    Raises ``InvalidCalibration`` for a text that is too short, too little, or of other tokens.
    """
    for step in plan.passes():
        if isinstance(step, CalibrationOptions) and step.reads_calibration:
            step.draw_clean(calibration, model)


def _release(workspace: Workspace) -> RegionDone:
    """What is done with a finished region where nobody writes it."""
    return lambda region: workspace.release(region.nodes, scratch=False)


def _handed_on(workspace: Workspace, making: Making | None) -> RegionDone:
    """What is done with a finished region where the first process writes it."""
    done = _release(workspace) if making is None else making.region_done

    def hand_on(region: Region) -> None:
        _gather(workspace, region.nodes)
        done(region)

    return hand_on


def _gather(workspace: Workspace, names: Sequence[str]) -> None:
    """Give the first process, which writes, the stored forms of these nodes."""
    workspace.forms.bring(names if workspace.world.first else ())


def _verify(job: Job, workspace: Workspace) -> None:
    graph = workspace.program.graph
    graph.after = str(job.plan)
    verify(graph, workspace.tensors)


def _timed(report: CompileReport, dumper: Dumper, seconds: float, shared: Shared) -> CompileReport:
    dumps = tuple(map(str, dumper.write()))
    return report.model_copy(update={"dumps": dumps, "seconds": seconds, **shared})


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
