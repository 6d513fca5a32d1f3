"""Short compiles of tiny checkpoints, and a pass that shows what others left."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import qdc
from qdc.compiling.compiler import run_job
from qdc.compiling.instruments import Instrument
from qdc.compiling.job import Job, plan_job
from qdc.compiling.options import CompileOptions
from qdc.ir.graph import Node
from qdc.pipeline.passbase import Pass
from qdc.pipeline.registry import Registry, standard_registry
from qdc.report.model import CompileReport
from qdc.streaming.unit import Unit

SAMPLES, LENGTH = 4, 16
PLAIN = "stages(calibrate-mcs,sensitivity,abmp-allocate,daq-lower),pack"
"""Every pass of the method, without polish and with the vocabulary as it is."""


def compile_tiny(model: Path, out: Path, passes: str = PLAIN, **options: Any) -> CompileReport:
    """Compile with few and short samples, where the pipeline calibrates; write no report."""
    options = {"write_report": False, **options}
    text = pipeline_text(passes)
    if any(name in text for name in ("calibrate-", "polish", "distill", "guide")):
        options = {"samples": SAMPLES, "length": LENGTH, **options}
    return qdc.compile(model, passes, out=out, **options)


def pipeline_text(passes: str) -> str:
    """The text that a preset stands for; other text as it is."""
    presets = standard_registry().presets
    return presets[passes].text if passes in presets else passes


class Spy(Pass):
    """Call ``look`` with its label and its unit."""

    name: ClassVar[str] = "spy"
    label: str = ""
    look: ClassVar[Callable[[str, Unit], None]]

    def run(self, unit: Unit) -> None:
        type(self).look(self.label, unit)


class Barrier(Spy):
    """The same for the whole model."""

    name: ClassVar[str] = "spy-all"
    barrier: ClassVar[bool] = True


def spying(look: Callable[[str, Unit], None]) -> Registry:
    """A registry in which ``spy{label=...}`` and ``spy-all{...}`` call ``look``."""
    registry = standard_registry()
    for kind in (Spy, Barrier):
        registry.add(type(kind.__name__, (kind,), {"look": staticmethod(look)}))
    return registry


def make_job(
    model: Path,
    out: Path,
    registry: Registry | None = None,
    command: str | None = None,
    instruments: Sequence[Instrument] = (),
    **options: Any,
) -> Job:
    """A compile with these options, planned and not run; writes no report unless asked to."""
    asked = CompileOptions.parse(
        **{"model_dir": model, "out": out, "write_report": False, **options}
    )
    found = registry or standard_registry()
    return plan_job(asked, found, command=command, instruments=instruments)


def run_passes(
    model: Path, folder: Path, registry: Registry, passes: str, **options: Any
) -> CompileReport:
    """Run a pipeline without an artifact, states exact; repro and dumps go below ``folder``."""
    options = {"states": "f32", **options}
    return run_job(make_job(model, folder / "out", registry, passes=passes, **options))


def names(nodes: tuple[Node, ...]) -> list[str]:
    """Names of nodes."""
    return [node.name for node in nodes]
