"""From a case to work with a digest: what would give the same figures is the same job."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.common.pipelines import overrides, taken
from bench.peers import PEERS
from qdc.compiling.collect import full_text
from qdc.errors import QdcError
from qdc.frontend.opening import open_model
from qdc.ir.graph import LayerGraph
from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import check_order
from qdc.pipeline.registry import Registry, standard_registry

from .cases import TIMING, TIMING_THREADS, Case
from .result import Record

SEEDLESS = ("hqq",)
"""Libraries that read no samples: one seed is all."""


class Work(Record):
    """All that a worker is told."""

    digest: str
    name: str
    model: Path
    held_out: Path
    pipeline: str = ""
    peer: str = ""
    options: dict[str, Any]
    what: str
    seed: int | None
    samples: int | None
    windows: int
    """0 leaves the evaluation out."""
    original: Path
    """Where the original model's losses are kept between jobs."""
    peers_python: Path


@dataclass(frozen=True)
class Settings:
    """What all jobs of a run share."""

    model: Path
    held_out: Path
    out: Path
    peers_python: Path
    windows: int = 64
    samples: int | None = None
    """Replaces the number of samples where a pipeline does not name one."""
    tag: str = ""


@dataclass(frozen=True)
class Job:
    """One case with one seed; ``work`` is None where it cannot be run, and ``missing`` says why."""

    case: Case
    seed: int | None
    work: Work | None
    missing: str = field(default="")

    @property
    def path(self) -> str:
        """``method/default/seed0``."""
        return self.case.path + ("" if self.seed is None else f"/seed{self.seed}")

    @property
    def threads(self) -> int | None:
        """Threads that the case asks for; None for those of the run."""
        return TIMING_THREADS if self.case.kind == TIMING else None


def resolve(cases: Iterable[Case], seeds: Iterable[int], settings: Settings) -> Iterator[Job]:
    """Every case with every seed, or with none where no seed changes anything."""
    wanted = list(seeds)
    for case in cases:
        try:
            needed: list[int | None] = list(wanted) if _takes_seed(case) else [None]
            for seed in needed[:1] if case.kind == TIMING else needed:
                yield Job(case, seed, _work(case, seed, settings))
        except QdcError as error:
            yield Job(case, None, None, error.what)


def _work(case: Case, seed: int | None, settings: Settings) -> Work:
    samples = settings.samples if "samples=" not in case.pipeline else None
    what = _peer(case, settings) if case.peer else _pipeline(case, seed, samples, settings.model)
    windows = 0 if case.kind == TIMING else settings.windows
    held_out = hashlib.sha256(settings.held_out.read_bytes()).hexdigest()
    judged = (_model_digest(settings.model), held_out, settings.windows)
    parts = (what, seed, samples, windows, judged, settings.tag, case.kind == TIMING)
    return Work(
        digest=_digest(parts),
        name=case.path,
        model=settings.model.resolve(),
        held_out=settings.held_out.resolve(),
        pipeline=case.pipeline,
        peer=case.peer,
        options=case.options,
        what=what,
        seed=seed,
        samples=samples,
        windows=windows,
        original=settings.out.resolve() / f"original-{_digest(judged)}.json",
        peers_python=settings.peers_python,
    )


def _peer(case: Case, settings: Settings) -> str:
    if not settings.peers_python.is_file():
        raise QdcError(f"no interpreter at {settings.peers_python}, see bench/README.md")
    defaults = import_module(f"bench.peers.{PEERS[case.peer]}").DEFAULTS
    return f"{case.peer} {json.dumps(defaults | case.options, sort_keys=True)}"


def _pipeline(case: Case, seed: int | None, samples: int | None, model: Path) -> str:
    """The pipeline with every option, so that a changed default is another job."""
    registry = _registry()
    given: dict[str, object] = {**overrides(case.pipeline, seed, samples)}
    plan = build_plan(case.pipeline, registry, given)
    backend = registry.find_backend("reference")
    check_order(plan, final=backend.requires, backend=backend.name)
    graph = _graph(model)
    for step in plan.passes():
        step.check(graph)
    return full_text(plan)


def _takes_seed(case: Case) -> bool:
    if case.peer:
        return case.peer not in SEEDLESS
    return bool(taken(case.pipeline, ["seed"]))


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@cache
def _registry() -> Registry:
    return standard_registry()


@cache
def _graph(folder: Path) -> LayerGraph:
    return open_model(folder)[1].graph


@cache
def _model_digest(folder: Path) -> str:
    return open_model(folder)[0].scan(lambda done, total: None)
