"""One compile as it was asked for: configured, and checked as far as can be without weights."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from qdc.artifact.partial import check_interrupted
from qdc.artifact.writer import check_target
from qdc.compiling.instruments import Instrument
from qdc.errors import InvalidPipeline, QdcError
from qdc.frontend.select import Choice, parse_choice
from qdc.pipeline.backendbase import Backend
from qdc.pipeline.builder import build_backend, build_plan
from qdc.pipeline.plan import Plan, check_order
from qdc.pipeline.registry import Registry
from qdc.report.files import check_report_target
from qdc.runtime.device import find_device
from qdc.streaming.memory import states_memory
from qdc.text.records import Fields
from qdc.units import parse_size

States = Literal["bf16", "f32"]


@dataclass(frozen=True)
class Job:
    """Everything that decides a compile, checked and configured before the first forward."""

    model: Path
    out: Path
    plan: Plan
    backend: Backend | None
    """None if the pipeline stops before an artifact."""
    registry: Registry
    calibration: Path | None = None
    fields: Fields = field(default=Fields())
    states: States = "bf16"
    """Floating dtype of calibration states in host memory."""
    front_end: Choice = "auto"
    """Who traces the model."""
    device: str = "cpu"
    host_memory: int | None = None
    """Bytes of calibration states that may wait in host memory; None is no limit."""
    force: bool = False
    resume: bool = False
    """Whether to go on from an interrupted compile, if one is there."""
    restart: bool = False
    """Whether to discard one."""
    report: bool = True
    """Whether the report is written beside the artifact."""
    dump_places: frozenset[int] = frozenset()
    dump_folder: Path = Path()
    repro_folder: Path = Path("repro")
    command: str = ""
    instruments: tuple[Instrument, ...] = field(default=())


def plan_job(
    model: Path,
    out: Path,
    registry: Registry,
    *,
    passes: str = "default",
    backend: str = "reference",
    overrides: dict[str, object] | None = None,
    calibration: Path | None = None,
    fields: Fields | None = None,
    states: str = "bf16",
    host_memory: str | int | None = None,
    front_end: str = "auto",
    device: str = "cpu",
    force: bool = False,
    resume: bool = False,
    restart: bool = False,
    report: bool = True,
    dump_after: Sequence[str] = (),
    dump_folder: Path | None = None,
    stop_after: str | None = None,
    command: str = "",
    instruments: Sequence[Instrument] = (),
) -> Job:
    """Configure a compile and check all that can be checked without the model's weights.

    Raises:
        QdcError: unknown names, bad options, unmet requirements, a target that is not free, an
            option that nothing takes.
    """
    out = out.resolve() if out.name in ("", "..") else out.absolute()
    plan = build_plan(passes, registry, overrides)
    emitter = build_backend(backend, registry)
    if stop_after is not None:
        plan = plan.cut(plan.place_of(stop_after))
        check_order(plan)
        for option, what in (
            (force and "--force", "replaces an artifact"),
            (resume and "--resume", "goes on with an artifact"),
            (restart and "--restart", "begins an artifact anew"),
        ):
            if option:
                raise InvalidPipeline(
                    f"{option} {what}, and --stop-after writes none", help="leave one out"
                )
    _check_resume(resume=resume, restart=restart, dumped=bool(dump_after))
    places = frozenset(_dump_places(plan, [*dump_after, *([stop_after] if stop_after else [])]))
    if dump_folder is not None and not places:
        raise InvalidPipeline(
            "--dump-dir is given, and nothing is dumped", help="add --dump-after all"
        )
    if stop_after is None:
        check_order(plan, final=emitter.requires, backend=emitter.name)
        if not check_interrupted(out, resume=resume, restart=restart):
            check_target(out, force=force)
        if report:
            check_report_target(out)
    if calibration is not None and not any(step.reads_calibration for step in plan.passes()):
        raise InvalidPipeline(
            "no pass of the pipeline reads calibration text, and --calibration is given",
            help=f"the pipeline is: {plan}",
        )
    fields = fields or Fields()
    if fields.option and calibration is None:
        raise InvalidPipeline(
            f"{fields.option} is given, and no file to read it from", help="add --calibration FILE"
        )
    dump_folder = dump_folder or out.with_name(f"{out.name}-dumps")
    if places:
        _check_folder(dump_folder)
    device = find_device(device)
    return Job(
        model=model,
        out=out,
        plan=plan,
        backend=None if stop_after is not None else emitter,
        registry=registry,
        calibration=calibration,
        fields=fields,
        states=check_states(states),
        host_memory=host_memory_limit(host_memory),
        front_end=parse_choice(front_end),
        device=device,
        force=force,
        resume=resume,
        restart=restart,
        report=report,
        dump_places=places,
        dump_folder=dump_folder,
        repro_folder=out.with_name(f"{out.name}-repro"),
        command=command,
        instruments=tuple(instruments),
    )


def check_states(name: str) -> States:
    """Refuse a dtype in which states cannot be held. Raises ``QdcError``."""
    for known in get_args(States):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise QdcError(f"calibration states cannot be held in {name!r}", help="known: bf16, f32")


def host_memory_limit(given: str | int | None) -> int:
    """Bytes of states that stay in memory, as given or the usual share. Raises ``QdcError``."""
    if given is None:
        return states_memory()
    return parse_size(str(given), "--host-memory")


def _check_resume(*, resume: bool, restart: bool, dumped: bool) -> None:
    """Refuse options that contradict each other."""
    if resume and restart:
        raise InvalidPipeline(
            "--resume goes on from an interrupted compile, and --restart discards it",
            help="leave one out",
        )
    if resume and dumped:
        raise InvalidPipeline(
            "--dump-after shows what passes did in this process, and --resume goes on from another",
            help="leave --dump-after out, or begin anew with --restart",
        )


def _check_folder(folder: Path) -> None:
    """Check it now: a finished compile must not be lost to a folder that cannot be written."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise QdcError(
            f"cannot write dumps to {folder}",
            where=[str(there)],
            help="choose another --dump-dir",
        )


def _dump_places(plan: Plan, names: Sequence[str]) -> Iterator[int]:
    steps = [step.name for step in plan.passes()]
    for name in names:
        if name == "all":
            yield from range(len(steps))
        else:
            plan.place_of(name)
            yield from (place for place, step in enumerate(steps) if step == name)
