"""From a case to work with a digest: what would give the same figures is the same job."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from bench.peers import PEERS
from qdc.comparing.jobs import Setup
from qdc.comparing.methods import taken
from qdc.comparing.runner import WORKER
from qdc.comparing.runner import Job as AnyJob
from qdc.comparing.work import Calibrating, Judging, Work
from qdc.errors import QdcError
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import Registry, standard_registry

from .cases import TIMING, TIMING_THREADS, Case

SEEDLESS = ("hqq",)
"""Libraries that read no samples: one seed is all."""
LIBRARY_WORKER = "bench.quality.worker"
MASKS = 3
"""Drawings of each window and ratio."""


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


@dataclass(frozen=True, kw_only=True)
class Job(AnyJob):
    """One case with one seed."""

    case: Case
    seed: int | None


def resolve(cases: Iterable[Case], seeds: Iterable[int], settings: Settings) -> Iterator[Job]:
    """Every case with every seed, or with none where no seed changes anything."""
    wanted = list(seeds)
    for case in cases:
        try:
            needed: list[int | None] = list(wanted) if _takes_seed(case) else [None]
            for seed in needed[:1] if case.kind == TIMING else needed:
                yield _job(case, seed, _work(case, seed, settings))
        except QdcError as error:
            yield _job(case, None, None, error.what)


def _job(case: Case, seed: int | None, work: Work | None, missing: str = "") -> Job:
    """``method/default/seed0``; timings run alone."""
    return Job(
        path=case.path + ("" if seed is None else f"/seed{seed}"),
        work=work,
        missing=missing,
        alone=TIMING_THREADS if case.kind == TIMING else None,
        module=LIBRARY_WORKER if case.peer else WORKER,
        case=case,
        seed=seed,
    )


def _work(case: Case, seed: int | None, settings: Settings) -> Work:
    timed = case.kind == TIMING
    setup = _setup(settings.model, settings.held_out, settings.out, settings.windows,
                   settings.samples, settings.tag, judged=not timed)  # fmt: skip
    if not case.peer:
        return setup.work(case.path, case.pipeline, seed, mark=TIMING if timed else "")[0]
    told = {"peer": case.peer, "options": case.options, "python": str(settings.peers_python)}
    return setup.other(
        case.path,
        _peer(case, settings),
        seed=seed,
        calibration=setup.calibrating,
        extra=told,
        mark=TIMING if timed else "",
    )


def _peer(case: Case, settings: Settings) -> str:
    if not settings.peers_python.is_file():
        raise QdcError(f"no interpreter at {settings.peers_python}, see bench/README.md")
    defaults = import_module(f"bench.peers.{PEERS[case.peer]}").DEFAULTS
    return f"{case.peer} {json.dumps(defaults | case.options, sort_keys=True)}"


def _takes_seed(case: Case) -> bool:
    if case.peer:
        return case.peer not in SEEDLESS
    return bool(taken(build_plan(case.pipeline, _registry()), ["seed"]))


@cache
def _registry() -> Registry:
    return standard_registry()


@cache
def _setup(
    model: Path,
    held_out: Path,
    out: Path,
    windows: int,
    samples: int | None,
    tag: str,
    *,
    judged: bool,
) -> Setup:
    """Windows hold parts of one document alone, so that figures of other days are of the same."""
    judging = Judging(text=held_out.resolve(), windows=windows, pack="within", masks=MASKS)
    return Setup(
        model=model,
        out=out,
        registry=_registry(),
        calibrating=Calibrating(samples=samples),
        judging=judging if judged else None,
        tag=tag,
    )
