"""Jobs of a benchmark: a case with a seed, done by a pipeline of ours or by a library."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from qdc.comparing.runner import WORKER, Job
from qdc.comparing.work import Work

LIBRARY_WORKER = "bench.peers.worker"


class AnyCase(Protocol):
    """One thing to measure, as each benchmark describes its own."""

    @property
    def path(self) -> str:
        """What ``--only`` is matched with, a seed behind it."""

    @property
    def pipeline(self) -> str:
        """Of ours, or empty."""

    @property
    def peer(self) -> str:
        """Name of a library in ``bench.peers``, or empty."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What the library is told."""


C = TypeVar("C", bound=AnyCase)


@dataclass(frozen=True, kw_only=True)
class CaseJob(Job, Generic[C]):
    """One case with one seed."""

    case: C
    seed: int | None

    @classmethod
    def of(
        cls,
        case: C,
        seed: int | None,
        work: Work | None,
        missing: str = "",
        alone: int | None = None,
    ) -> "CaseJob[C]":
        """Call it ``method/default/seed0``, and have it done by whoever can."""
        return cls(
            path=case.path + ("" if seed is None else f"/seed{seed}"),
            work=work,
            missing=missing,
            alone=alone,
            module=LIBRARY_WORKER if case.peer else WORKER,
            case=case,
            seed=seed,
        )
