"""What the benchmark compares: presets, baselines and other people's libraries, as data."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qdc.pipeline.registry import standard_registry

METHOD, ABLATION, TIMING = "method", "ablation", "timing"
OURS, BASELINE, PEER = "preset", "baseline", "library"
EXPECTED = (
    "release", "paper", "default", "best", "uniform", "rtn", "gptq", "gptaq", "arb-rc-2",
    "data-free",
)  # fmt: skip
"""Presets that a page without would be incomplete."""
TIMED = ("release", "default", "best", "autoround")
TIMING_THREADS = 2


@dataclass(frozen=True)
class Case:
    """One thing to measure: a pipeline of ours, or a library with its options."""

    kind: str
    """``method``, ``ablation`` or ``timing``."""
    group: str
    """The family of a method, the question of an ablation."""
    name: str
    pipeline: str = ""
    peer: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    base: bool = False
    """Whether it is what the other variants of its group are compared with."""

    @property
    def path(self) -> str:
        """``ablation/damping/0.1``: what ``--only`` is matched with, a seed behind it."""
        return "/".join((self.kind, *([self.group] if self.kind == ABLATION else []), self.name))


_GPTQ = "stages(calibrate-mcs,sensitivity,gptq-lower{search=%s group=%d zero=packed%s}),pack"
BASELINES = {
    "rtn clip g128": "stages(calibrate-mcs,rtn-lower{search=clip zero=packed}),pack",
    "rtn clip g64": "stages(calibrate-mcs,rtn-lower{search=clip group=64 zero=packed}),pack",
    "gptq minmax g128": _GPTQ % ("minmax", 128, ""),
    "gptq minmax g64": _GPTQ % ("minmax", 64, ""),
    "gptq clip g128": _GPTQ % ("clip", 128, ""),
    "gptq clip g128, refitted": _GPTQ % ("clip", 128, " sweeps=1 rounds=2"),
    "gptq clip g64, refitted": _GPTQ % ("clip", 64, " sweeps=1 rounds=2"),
    "gptaq clip g128": "stages(calibrate-cross,sensitivity,"
    "gptq-lower{search=clip group=128 zero=packed asymmetry=0.25}),pack",
}
"""Pipelines that have no preset."""
LIBRARIES: dict[str, tuple[str, dict[str, Any]]] = {
    "autoround": ("autoround", {"iters": 200, "group_size": 128, "sym": False}),
    "gptq library minmax g128": ("gptq", {"group_size": 128, "observer": "memoryless_minmax"}),
    "gptq library clip g128": ("gptq", {"group_size": 128, "observer": "memoryless_mse"}),
    "gptq library clip g64": ("gptq", {"group_size": 64, "observer": "memoryless_mse"}),
    "hqq": ("hqq", {"group_size": 128}),
}
"""Name in ``bench.peers`` and options."""


def methods() -> Iterator[Case]:
    """Every preset that qdc has now, those it should have, the baselines and the libraries."""
    for name in dict.fromkeys((*EXPECTED, *standard_registry().presets)):
        yield Case(METHOD, OURS, name, pipeline=name)
    for name, text in BASELINES.items():
        yield Case(METHOD, BASELINE, name, pipeline=text)
    for name, (peer, options) in LIBRARIES.items():
        yield Case(METHOD, PEER, name, peer=peer, options=options)


def timings() -> Iterator[Case]:
    """Cases that run alone on the machine, for their times only."""
    for case in methods():
        if case.name in TIMED:
            yield Case(TIMING, case.group, case.name, case.pipeline, case.peer, case.options)
