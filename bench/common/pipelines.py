"""What a pipeline takes."""

from collections.abc import Iterable

from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry


def taken(pipeline: str, options: Iterable[str]) -> set[str]:
    """Those options that some pass of the pipeline has: a compile refuses any other."""
    steps = build_plan(pipeline, standard_registry()).passes()
    fields = {name for step in steps for name in type(step).model_fields}
    return fields.intersection(options)


def overrides(pipeline: str, seed: int | None, samples: int | None) -> dict[str, int]:
    """Seed and number of samples as options of a compile: none where nothing is sampled."""
    given = {"seed": seed, "samples": samples}
    wanted = taken(pipeline, given)
    return {name: value for name, value in given.items() if value is not None and name in wanted}
