"""One compile as it was asked for: configured, and checked as far as can be without weights."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qdc.artifact.partial import check_interrupted
from qdc.artifact.writer import check_target, is_artifact
from qdc.checkpoint.folder import Checkpoint
from qdc.checkpoint.held import MODULE
from qdc.compiling.given import Given
from qdc.compiling.instruments import Instrument
from qdc.compiling.options import CompileOptions
from qdc.disk import refuse_special
from qdc.errors import InvalidPipeline, QdcError
from qdc.frontend.encoding import open_encoder
from qdc.frontend.opening import open_model
from qdc.frontend.select import Choice, choose, parse_choice
from qdc.frontend.tracer import Program
from qdc.ir.activations import RotatedHeads, Rotation
from qdc.ir.facts import ModelFacts
from qdc.pipeline.backendbase import Backend
from qdc.pipeline.plan import Plan
from qdc.pipeline.registry import Registry
from qdc.planning.configure import configure, of_activations
from qdc.planning.effort import said
from qdc.report.files import check_report_target
from qdc.runtime.device import find_device
from qdc.streaming.calibration import Calibration
from qdc.text.records import DEFAULT_FIELD
from qdc.text.source import read_source


@dataclass(frozen=True)
class Job:
    """What a compile was asked for, and what follows from it before the first forward."""

    options: CompileOptions
    plan: Plan
    backend: Backend | None
    """None if the pipeline stops before an artifact."""
    registry: Registry
    front_end: Choice
    """Who traces the model."""
    device: str
    """A device that is there."""
    dump_places: frozenset[int] = frozenset()
    given: Given | None = None
    """The module that is compiled, if it is no folder."""
    command: str = ""
    """How to run this again."""
    instruments: tuple[Instrument, ...] = field(default=())

    @property
    def out(self) -> Path:
        """The folder of the artifact, absolute."""
        return self.options.target

    @property
    def title(self) -> str:
        """What is compiled."""
        return self.given.title if self.given else str(self.options.model_dir.absolute())

    def frontend(self, checkpoint: Checkpoint) -> str:
        """Whose model it is, as the artifact says it."""
        if self.given is not None:
            return MODULE
        return choose(checkpoint.config, self.front_end, self.registry.families)

    def open(self) -> tuple[Checkpoint, Program]:
        """Trace what is compiled. Raises ``QdcError`` for what is no model, or none of qdc's."""
        if self.given is not None:
            return self.given.open()
        return open_model(self.options.model_dir, self.front_end, self.registry.families)

    def calibration(self) -> Calibration | None:
        """What samples are drawn from; None if no pass does. Raises ``QdcError``."""
        options = self.options
        if not any(step.reads_calibration for step in self.plan.passes()):
            return None
        if self.given is not None:
            return self.given.calibration(options)
        source = read_source(options.calibration, options.fields)
        encode = open_encoder(
            options.model_dir, options.document_tokens, self.front_end, self.registry.families
        )
        return Calibration(source, encode)

    def fitted(self, model: ModelFacts) -> "Job":
        """The same as this model wants it: masks by blocks where its attention goes by them.

        Samples by ``effort`` are no longer than the model and its rows are.
        """
        rows = None if self.given is None else self.given.rows
        longest = model.max_length if rows is None else min(model.max_length, rows.shape[1])
        plan, _ = configure(self.options, self.registry, self.options.stop_after, model, longest)
        return replace(self, plan=plan)

    @property
    def effort(self) -> str:
        """What the effort has chosen, in words."""
        return said(self.options.effort, self.plan, self.options.settled)

    @property
    def dump_folder(self) -> Path:
        """Where dumps go."""
        return self.options.dump_dir or self.out.with_name(f"{self.out.name}-dumps")

    @property
    def repro_folder(self) -> Path:
        """Where a pass that fails leaves what it was given."""
        return self.out.with_name(f"{self.out.name}-repro")


def plan_job(
    options: CompileOptions,
    registry: Registry,
    *,
    device: str | None = None,
    command: str | None = None,
    given: Given | None = None,
    instruments: Sequence[Instrument] = (),
) -> Job:
    """Configure a compile and check all that can be checked without the model's weights.

    Args:
        options: what a user asks for.
        registry: where names are looked up.
        device: that of this process, where several share the work; else that of the options.
        command: how to run this again; the call in Python if not given.
        given: the module that is compiled, in the place of the options' folder.
        instruments: further observers of the run.

    Raises:
        QdcError: unknown names, bad options, unmet requirements, a target that is not free, an
            option that nothing takes.
    """
    plan, backend = configure(options, registry, options.stop_after)
    if given is not None and given.rows is not None:
        if options.text_field != DEFAULT_FIELD or options.chat_fields is not None:
            raise InvalidPipeline("calibration is token ids, which have no fields")
        if not any(step.reads_calibration for step in plan.passes()):
            raise InvalidPipeline(
                "no pass of the pipeline reads calibration ids, and calibration is given",
                help=f"the pipeline is: {plan}",
            )
    changing = of_activations(plan, (Rotation, RotatedHeads))
    if given is not None and changing:
        raise InvalidPipeline(
            f"{' and '.join(changing)} changes what linears read, and whether a module of yours "
            "calls its linears is not known",
            help="leave it out, or compile the checkpoint's folder",
        )
    places = frozenset(_dump_places(plan, options.dumped))
    job = Job(
        options=options,
        plan=plan,
        backend=backend,
        registry=registry,
        front_end=parse_choice(options.frontend),
        device=find_device(device or options.device),
        dump_places=places,
        given=given,
        command=options.call("qdc.compile") if command is None else command,
        instruments=tuple(instruments),
    )
    _check_places(job)
    return job


def _check_places(job: Job) -> None:
    """Refuse places that are taken, or cannot be written. Raises ``QdcError``."""
    asked = job.options
    if job.backend is not None:
        check_interrupted(job.out, resume=asked.resume, restart=asked.restart)
        if not (asked.resume and is_artifact(job.out)):  # which may be this one, finished
            check_target(job.out, force=asked.force, single=job.backend.single_file)
        if asked.write_report:
            check_report_target(job.out)
    elif not job.out.is_dir():
        refuse_special(job.out)  # what is left of such a compile lies beside it
    if job.dump_places:
        _check_folder(job.dump_folder)


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
