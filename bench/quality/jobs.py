"""From a case to work with a digest: what would give the same figures is the same job."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.common.jobs import CaseJob
from bench.peers.jobs import SEEDLESS, library_work
from qdc.comparing.jobs import Setup
from qdc.comparing.methods import taken
from qdc.comparing.work import Calibrating, Judging, Work
from qdc.errors import QdcError
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import Registry, standard_registry

from .cases import TIMING, TIMING_THREADS, Case

MASKS = 3
"""Drawings of each window and ratio."""
Job = CaseJob[Case]


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


def resolve(cases: Iterable[Case], seeds: Iterable[int], settings: Settings) -> Iterator[Job]:
    """Every case with every seed, or with none where no seed changes anything."""
    wanted = list(seeds)
    for case in cases:
        try:
            needed: list[int | None] = list(wanted) if _takes_seed(case) else [None]
            for seed in needed[:1] if case.kind == TIMING else needed:
                # Timings run alone.
                alone = TIMING_THREADS if case.kind == TIMING else None
                yield Job.of(case, seed, _work(case, seed, settings), alone=alone)
        except QdcError as error:
            yield Job.of(case, None, None, error.what)


def _work(case: Case, seed: int | None, settings: Settings) -> Work:
    timed = case.kind == TIMING
    setup = _setup(settings.model, settings.held_out, settings.out, settings.windows,
                   settings.samples, settings.tag, judged=not timed)  # fmt: skip
    if not case.peer:
        return setup.work(case.path, case.pipeline, seed, mark=TIMING if timed else "")[0]
    return library_work(
        setup,
        case.path,
        case.peer,
        case.options,
        seed,
        settings.peers_python,
        mark=TIMING if timed else "",
    )


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
