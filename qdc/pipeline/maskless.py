"""Passes that draw masks, refused for a model that has no mask token."""

from collections.abc import Iterable
from dataclasses import replace

from qdc.errors import UnsupportedModel
from qdc.ir.graph import LayerGraph
from qdc.pipeline.passbase import Pass
from qdc.pipeline.plan import Group, Plan

GEOMETRY, CLEAN = "geometry", "clean"
"""The option of passes, and its value, with which they draw no masks."""


def refuse_masks(plan: Plan, graph: LayerGraph) -> None:
    """Raise ``UnsupportedModel`` where masks would be drawn and the model has no mask token."""
    if graph.model.mask_token_id is not None:
        return
    if graph.model.renoises:  # geometries are refused by the passes themselves
        idle = dict.fromkeys(step.name for step in plan.passes() if step.without_masks() is None)
        if idle:
            raise UnsupportedModel(
                f"the model has no mask token, and masks are what {', '.join(idle)} works on",
                help=f"leave {', '.join(idle)} out",
            )
        return
    drawing = [step for step in plan.passes() if str(step.without_masks()) != str(step)]
    if not drawing:
        return
    names = dict.fromkeys(step.name for step in drawing)
    useless = dict.fromkeys(step.name for step in drawing if step.without_masks() is None)
    if useless:
        written = f"leave out {', '.join(useless)}, and write geometry=clean to the other passes"
    elif all(step.without_masks() == _only_clean(step) for step in drawing):
        written = f"--{GEOMETRY} {CLEAN}"
    else:
        written = f"--passes '{Plan(tuple(_clean(plan.items)))}'"
    raise UnsupportedModel(
        f"the model has no mask token, and masks are drawn by {', '.join(names)}",
        where=[str(step) for step in drawing],
        help="if it fills masked places, say with which token: mask_token_id, in config.json or of "
        f"qdc.compile(module); else draw none: {written}",
    )


def _only_clean(step: Pass) -> Pass:
    """The pass with no other change; unlike ``without_masks`` it may hold what it does not read."""
    return step.model_copy(update={GEOMETRY: CLEAN})


def _clean(items: Iterable[Pass | Group]) -> Iterable[Pass | Group]:
    for item in items:
        if isinstance(item, Group):
            yield replace(item, passes=tuple(p.without_masks() or p for p in item.passes))
        else:
            yield item.without_masks() or item
