"""From variants and seeds to jobs: what a comparison computes, and what is known beforehand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qdc.checkpoint.folder import Checkpoint
from qdc.comparing.methods import Method, checked, overrides, parse_methods, steps_with
from qdc.comparing.options import CompareOptions
from qdc.comparing.runner import Job
from qdc.comparing.scratch import scratch_folder
from qdc.comparing.vary import Axis, Variant, parse_axis, variants
from qdc.comparing.work import Calibrating, Judging, Work, digest_of
from qdc.compiling.collect import full_text
from qdc.errors import QdcError
from qdc.frontend.opening import open_model
from qdc.ir.graph import LayerGraph
from qdc.models.document_tokens import DocumentTokens
from qdc.pipeline.builder import build_plan
from qdc.pipeline.maskless import refuse_masks
from qdc.pipeline.registry import Registry
from qdc.planning.configure import geometry_of
from qdc.runtime.device import find_device
from qdc.text.records import Fields
from qdc.text.source import read_source, read_text
from qdc.version import __version__


@dataclass(frozen=True)
class Setup:
    """What all jobs of a comparison share."""

    model: Path
    out: Path
    """The folder of results."""
    registry: Registry
    calibrating: Calibrating
    judging: Judging | None
    document_tokens: DocumentTokens = "auto"
    device: str = "cpu"
    plugins: tuple[Path, ...] = ()
    tag: str = ""
    artifacts: Path | None = None
    """Where artifacts are kept, if they are."""

    @cached_property
    def _opened(self) -> tuple[Checkpoint, LayerGraph]:
        checkpoint, program = open_model(self.model, families=self.registry.families)
        return checkpoint, program.graph

    @property
    def graph(self) -> LayerGraph:
        """The model's layers. Raises ``QdcError`` for what is no model."""
        return self._opened[1]

    @cached_property
    def model_digest(self) -> str:
        """Of all its tensors, read once."""
        return self._opened[0].scan(lambda done, total: None)

    @cached_property
    def calibration_digest(self) -> str:
        """Of the calibration text."""
        given = self.calibrating
        fields = Fields.parse(given.text_field, given.chat_fields)
        return read_source(given.text, fields).digest

    @cached_property
    def judged(self) -> str:
        """A digest of the model, the held-out text, and how it is measured."""
        if self.judging is None:
            return ""
        told = self.judging.model_dump(mode="json", exclude={"text"})
        text = read_text(self.judging.text, self.judging.field).digest
        return digest_of((self.model_digest, text, told, self.document_tokens))

    def work(
        self, name: str, pipeline: str, seed: int | None, written: str = "", mark: str = ""
    ) -> tuple[Work, tuple[str, ...]]:
        """Compile a pipeline with a seed: the work, and notes on what the pipeline does not take.

        Args:
            name: of the case.
            pipeline: its text.
            seed: of all that it draws.
            written: what a user wrote, if ``pipeline`` was made from that.
            mark: keeps apart what is equal but for how it is run.

        Raises:
            QdcError: the pipeline cannot be run on this model.
        """
        bare = checked(build_plan(pipeline, self.registry), self.registry)
        given = {**self.calibrating.overrides, **({} if seed is None else {"seed": seed})}
        used, notes = overrides(bare, written or pipeline, given, self.registry)
        plan = build_plan(pipeline, self.registry, used, geometry_of(self.graph.model))
        refuse_masks(plan, self.graph)
        for step in plan.passes():
            step.check(self.graph)
        reads = any(step.reads_calibration for step in plan.passes())
        work = self.other(
            name,
            full_text(plan),
            pipeline=pipeline,
            overrides=used,
            seed=seed if "seed" in used else None,
            calibration=self.calibrating if reads else Calibrating(),
            text=self.calibration_digest if reads else "",
            mark=mark,
        )
        return work, notes

    def other(
        self,
        name: str,
        what: str,
        *,
        seed: int | None,
        calibration: Calibrating,
        text: str = "",
        pipeline: str = "",
        overrides: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
        mark: str = "",
    ) -> Work:
        """Work of any maker, its digest included.

        Args:
            name: of the case.
            what: all that it makes, spelled out.
            seed: of its samples.
            calibration: what of the samples it reads.
            text: digest of the text that these are drawn from.
            pipeline: to be compiled.
            overrides: options that go to its passes.
            extra: what its maker is told.
            mark: keeps apart what is equal but for how it is run.
        """
        told = calibration.model_dump(mode="json", exclude={"text"})
        parts = (
            what, seed, told, text, self.model_digest, self.judged, self.document_tokens,
            self.device.partition(":")[0], self.registry.plugins, __version__, self.tag, mark,
        )  # fmt: skip
        digest = digest_of(parts)
        return Work(
            digest=digest,
            name=name,
            what=what,
            model=self.model.resolve(),
            pipeline=pipeline,
            overrides=overrides or {},
            seed=seed,
            calibration=calibration,
            document_tokens=self.document_tokens,
            judging=self.judging,
            original=self.out.resolve() / f"original-{self.judged}.json",
            scratch=scratch_folder(self.out.resolve()),
            keep=None if self.artifacts is None else self.artifacts.resolve() / digest,
            device=self.device,
            plugins=tuple(path.resolve() for path in self.plugins),
            extra=extra or {},
        )


@dataclass(frozen=True)
class Row:
    """A variant of a method with its jobs, one a seed, or one in all where nothing is drawn."""

    variant: Variant
    jobs: tuple[Job, ...]
    notes: tuple[str, ...] = ()
    error: str = ""
    """Why there are no jobs."""


def setup_of(options: CompareOptions, registry: Registry, out: Path) -> Setup:
    """What a user asks of all jobs."""
    return Setup(
        model=options.model_dir,
        out=out,
        registry=registry,
        calibrating=Calibrating(
            text=None if options.calibration is None else options.calibration.resolve(),
            text_field=options.text_field,
            chat_fields=options.chat_fields,
            samples=options.samples,
            length=options.length,
            pack=options.pack,
            isolate=options.isolate,
        ),
        judging=Judging(
            text=options.text.resolve(),
            field=options.held_field,
            windows=options.windows,
            length=options.held_length,
            pack=options.held_pack,
            ratios=tuple(sorted(set(options.ratios))),
            masks=options.masks,
        ),
        document_tokens=options.document_tokens,
        device=find_device(options.device),
        plugins=options.plugins,
        tag=options.tag,
        artifacts=options.out / "artifacts" if options.keep_artifacts else None,
    )


def asked(options: CompareOptions, registry: Registry) -> tuple[tuple[Axis, ...], list[Variant]]:
    """What is varied, and all that is compared. Raises ``QdcError`` for what cannot be meant."""
    axes = tuple(parse_axis(text) for text in options.vary)
    methods: tuple[Method, ...] = parse_methods(options.methods, registry)
    given = {} if options.geometry is None else {"geometry": options.geometry}
    for name, value in given.items():
        if not any(steps_with(method.plan, name) for method in methods):
            raise QdcError(f"--{name} {value}: no method draws samples", help="leave it out")
    return axes, list(variants(methods, axes, registry, given))


def rows(found: Sequence[Variant], seeds: Sequence[int], setup: Setup) -> Iterator[Row]:
    """Each variant with its jobs; what cannot be run on the model has an error instead."""
    for variant in found:
        notes = [f"has no option {option}" for option in variant.lacks]
        notes += [f"it writes its own {option}" for option in variant.kept]
        notes += [
            f"is run without {option}, which it does not go with" for option in variant.dropped
        ]
        if variant.error:
            yield Row(variant, (), tuple(notes), variant.error)
            continue
        try:
            jobs, said = _jobs(variant, seeds, setup)
        except QdcError as error:
            yield Row(variant, (), tuple(notes), str(error))
        else:
            yield Row(variant, jobs, (*notes, *said))


def _jobs(
    variant: Variant, seeds: Sequence[int], setup: Setup
) -> tuple[tuple[Job, ...], tuple[str, ...]]:
    jobs: list[Job] = []
    for seed in seeds:
        work, notes = setup.work(variant.name, variant.pipeline, seed, variant.method.pipeline)
        if work.seed is None:
            return (Job(variant.name, work),), (*notes, *_unseeded(notes, seeds))
        jobs.append(Job(f"{variant.name} seed {seed}", work))
    return tuple(jobs), notes


def _unseeded(notes: Sequence[str], seeds: Sequence[int]) -> list[str]:
    if len(seeds) < 2 or any("seed" in note for note in notes):
        return []
    return ["draws nothing: one run stands for all seeds"]
