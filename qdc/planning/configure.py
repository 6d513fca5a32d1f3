"""From the options of a compile to its passes and its backend, without a model."""

from qdc.errors import InvalidPipeline
from qdc.ir.activations import OfActivations
from qdc.ir.facts import ModelFacts
from qdc.pipeline.backendbase import Backend
from qdc.pipeline.builder import build_backend, build_plan
from qdc.pipeline.passbase import Kinds
from qdc.pipeline.plan import Plan, check_order
from qdc.pipeline.registry import Registry
from qdc.planning.effort import EFFORTS
from qdc.planning.options import PlanOptions


def configure(
    options: PlanOptions,
    registry: Registry,
    stop_after: str | None = None,
    model: ModelFacts | None = None,
    longest: int | None = None,
) -> tuple[Plan, Backend | None]:
    """Configure passes and backend, and check that each finds what it reads.

    Args:
        options: what a user asks for.
        registry: where names are looked up.
        stop_after: the last pass to run; without a backend then, for no artifact is written.
        model: once it is open; attention by blocks is calibrated block by block.
        longest: tokens of a sample that the model and its rows have; an effort asks for no more.

    Raises:
        QdcError: unknown names, bad options, unmet requirements, an option that nothing takes.
    """
    effort = EFFORTS[options.effort].preferred(longest)
    usual = {} if model is None else geometry_of(model)
    plan = build_plan(options.pipeline, registry, options.overrides, {**effort, **usual})
    if model is None:
        _refuse_idle(options, registry, plan)
    backend: Backend | None = build_backend(options.backend, registry)
    whole = plan
    if stop_after is not None:
        plan, backend = plan.cut(plan.place_of(stop_after)), None
    if backend is None:
        check_order(plan, whole=whole)
    else:
        check_order(plan, final=backend.requires, backend=backend.name)
    if backend is not None:
        _refuse_activations(plan, backend)
    if options.calibration is not None and not any(p.reads_calibration for p in plan.passes()):
        raise InvalidPipeline(
            "no pass of the pipeline reads calibration text, and --calibration is given",
            help=f"the pipeline is: {plan}",
        )
    return plan, backend


def of_activations(plan: Plan, done: Kinds = ()) -> list[str]:
    """Names of the passes that change what linears do with activations, beyond what is done."""
    return [
        step.name
        for step in plan.passes()
        if any(
            issubclass(kind, OfActivations) and not issubclass(kind, tuple(done))
            for kind in (*step.provides, *step.annotates)
        )
    ]


def _refuse_activations(plan: Plan, backend: Backend) -> None:
    """Refuse passes whose work a backend does not do or say. Raises ``InvalidPipeline``."""
    names = of_activations(plan, backend.activations)
    if names:
        raise InvalidPipeline(
            f"{' and '.join(names)} {'change' if len(names) > 1 else 'changes'} what linears read, "
            f"which the backend {backend.name} does not follow",
            help="write with the backend reference, or leave the pass out",
        )


def geometry_of(model: ModelFacts) -> dict[str, object]:
    """The masks that a model is calibrated with by itself, where they are not those of all passes.

    A sampler that goes by attention blocks has one of them in work, and clean text before it; one
    that writes canvases has random tokens in them.
    """
    if model.renoises:
        return {"geometry": "uniform-noise"}
    return {"geometry": "block-diffusion"} if model.denoises_blocks else {}


def _refuse_idle(options: PlanOptions, registry: Registry, plan: Plan) -> None:
    """Refuse an effort that is asked for and finds nothing to choose. Raises ``QdcError``."""
    if options.effort == "normal":
        return
    if plan == build_plan(options.passes, registry, options.overrides):
        raise InvalidPipeline(
            f"--effort {options.effort} changes nothing: all that it chooses is given, or no pass "
            "takes it",
            help=f"leave it out; the pipeline is: {plan}",
        )
