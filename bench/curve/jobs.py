"""From a case to work with a digest: what would give the same figures is the same job."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.common.jobs import CaseJob
from bench.peers.jobs import SEEDLESS, library_work
from qdc.comparing.jobs import Setup
from qdc.comparing.methods import parse_methods
from qdc.comparing.vary import variants
from qdc.comparing.work import Calibrating, Judging, Work
from qdc.errors import QdcError
from qdc.pipeline.registry import standard_registry

from .cases import Case

DRAWN_CLEAN = {"geometry": "clean"}
"""How samples are drawn for a model without a mask token."""
Job = CaseJob[Case]


@dataclass(frozen=True)
class Settings:
    """What a user says of a run."""

    model: Path
    out: Path
    calibration: Path | None
    """None: the text that comes with qdc."""
    held_out: Path
    peers_python: Path
    samples: int | None = None
    length: int | None = None
    windows: int = 32
    masks: int = 1
    tag: str = ""


def setup(settings: Settings) -> Setup:
    """What all jobs share."""
    text = settings.calibration
    return Setup(
        model=settings.model,
        out=settings.out,
        registry=standard_registry(),
        calibrating=Calibrating(
            text=None if text is None else text.resolve(),
            samples=settings.samples,
            length=settings.length,
        ),
        judging=Judging(
            text=settings.held_out.resolve(),
            windows=settings.windows,
            length=settings.length,
            masks=settings.masks,
        ),
        tag=settings.tag,
    )


def resolve(
    cases: Iterable[Case], seeds: Iterable[int], shared: Setup, peers_python: Path
) -> Iterator[Job]:
    """Every case with every seed, or with none where no seed changes anything."""
    wanted = list(seeds)
    for case in cases:
        needed: list[int | None] = [None] if case.peer in SEEDLESS else list(wanted)
        for seed in needed:
            try:
                if case.missing:
                    raise QdcError(case.missing)
                if case.peer:
                    yield Job.of(case, seed, _library(case, seed, shared, peers_python))
                else:
                    yield Job.of(case, seed, _own(case, seed, shared))
            except QdcError as error:
                yield Job.of(case, seed, None, error.what)


def drawn(shared: Setup) -> dict[str, str]:
    """Options of the samples that the model asks for."""
    return DRAWN_CLEAN if shared.graph.model.mask_token_id is None else {}


def _own(case: Case, seed: int | None, shared: Setup) -> Work:
    (method,) = parse_methods([case.pipeline], shared.registry)
    (variant,) = variants((method,), (), shared.registry, drawn(shared))
    if variant.error:
        raise QdcError(variant.error)
    return shared.work(case.name, variant.pipeline, seed, case.pipeline)[0]


def _library(case: Case, seed: int | None, shared: Setup, python: Path) -> Work:
    return library_work(
        shared,
        case.name,
        case.peer,
        case.options,
        seed,
        python,
        drawn=drawn(shared),
        text=shared.calibration_digest,
    )
