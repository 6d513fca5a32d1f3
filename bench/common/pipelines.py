"""Texts of pipelines, and what a pipeline takes."""

from collections.abc import Iterable

from qdc.comparing import methods
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry


def pipeline(
    *,
    calibrate: str = "",
    sensitivity: str = "",
    allocate: str = "abmp-allocate",
    daq: str = "",
    before: str = "",
    after: str = "",
) -> str:
    """DAQ stage by stage on masked samples, with options of its passes and passes around it."""
    inner = (
        step("calibrate-mcs", calibrate),
        step("sensitivity", sensitivity),
        allocate,
        step("daq-lower", daq),
    )
    return f"{before}stages({','.join(inner)}){after},pack"


def step(name: str, options: str) -> str:
    """A pass as pipeline text, with braces only where there are options."""
    return f"{name}{{{options}}}" if options else name


def taken(pipeline: str, options: Iterable[str]) -> set[str]:
    """Those options that some pass of the pipeline has: a compile refuses any other."""
    return methods.taken(build_plan(pipeline, standard_registry()), list(options))


def overrides(pipeline: str, seed: int | None, samples: int | None) -> dict[str, int]:
    """Seed and number of samples as options of a compile: none where nothing is sampled."""
    given = {"seed": seed, "samples": samples}
    wanted = taken(pipeline, given)
    return {name: value for name, value in given.items() if value is not None and name in wanted}
