"""Plans: configured passes, presets, overrides, and the check of what reads what."""

import math
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdc.errors import InvalidPipeline, MissingAnnotation, QdcError, UnknownName
from qdc.format.codec import Lowered
from qdc.ir.annotations import Packed
from qdc.passes.abmp_allocate import AbmpAllocate
from qdc.passes.calibrate_mcs import CalibrateMcs
from qdc.passes.daq_lower import DaqLower
from qdc.passes.pack import Pack
from qdc.passes.polish import Polish
from qdc.passes.rtn_lower import RtnLower
from qdc.passes.sensitivity import Sensitivity
from qdc.pipeline.builder import build_plan
from qdc.pipeline.passbase import Kinds, Pass
from qdc.pipeline.plan import Group, Plan, StageOrder, check_order
from qdc.pipeline.registry import Registry, standard_registry


class Odd(Pass):
    """Options of every kind that the grammar can hold."""

    name: ClassVar[str] = "odd"
    keep: tuple[str, ...] = ()
    widths: tuple[int, ...] = (1, 2)
    levels: tuple[Literal[1, 2], ...] = (1,)
    limit: int | None = 7
    choice: Literal[1, True, "x"] | None = 1
    switch: bool = False
    title: str = "plain"


class Whole(Pass):
    """Needs the model at once."""

    name: ClassVar[str] = "whole"
    barrier: ClassVar[bool] = True


class Ready(Pass):
    """Needs any lowering."""

    name: ClassVar[str] = "ready"
    requires: ClassVar[Kinds] = (Lowered,)


@pytest.fixture(scope="module")
def registry() -> Registry:
    found = standard_registry()
    for kind in (Odd, Whole, Ready):
        found.add(kind)
    return found


REGISTRY = standard_registry()
REGISTRY.add(Odd)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = finite.filter(lambda value: value > 0)

BUILT_IN = st.one_of(
    st.builds(
        CalibrateMcs,
        samples=st.integers(1, 1 << 20),
        length=st.none() | st.integers(2, 1 << 40),
        prefix=st.floats(0, 1, exclude_max=True),
        seed=st.integers(0, (1 << 62) - 1),
        batch=st.integers(1, 1 << 40),
    ),
    st.builds(Sensitivity, damp=st.floats(0, 10, exclude_min=True), attempts=st.integers(1, 20)),
    st.builds(
        AbmpAllocate,
        base=st.integers(),
        ratio=st.floats(0, 0.5),
        scope=st.sampled_from(["stage", "layer"]),
    ),
    st.builds(
        DaqLower,
        sweeps=st.integers(0, 1000),
        tolerance=finite.filter(lambda value: value >= 0),
        sigma=positive,
        outlier_weight=positive.filter(lambda weight: weight != 1),  # with 1, sigma is refused
        compensation=st.sampled_from(["exact", "diag", "none"]),
        fit=st.sampled_from(["joint", "greedy"]),
        two_sided=st.booleans(),
        feedback=st.booleans(),
        scale_bits=st.sampled_from([8, 16]),
    ),
    st.builds(Polish, held_out=st.floats(0.01, 0.5), code_rate=st.floats(0, 1)),
    st.builds(
        RtnLower,
        bits=st.sampled_from([1, 2, 4, 8]),
        group=st.integers(1, 1 << 13).map(lambda eights: 8 * eights),
    ),
    st.just(Pack()),
    st.builds(
        Odd,
        keep=st.lists(st.text(max_size=4), max_size=3).map(tuple),
        widths=st.lists(st.integers(), min_size=1, max_size=3).map(tuple),
        levels=st.lists(st.sampled_from([1, 2]), min_size=1, max_size=3).map(tuple),
        limit=st.none() | st.integers(),
        choice=st.sampled_from([None, 1, True, "x"]),
        switch=st.booleans(),
        title=st.text(max_size=6),
    ),
)


INSIDE = BUILT_IN.filter(lambda step: not step.whole_regions)


@given(
    st.lists(BUILT_IN | st.lists(INSIDE, min_size=1, max_size=3), min_size=1, max_size=3),
    st.sampled_from(["natural", "outputs-first"]),
)
def test_the_text_of_a_plan_rebuilds_it(
    steps: list[Pass | list[Pass]], order: Literal["natural", "outputs-first"]
) -> None:
    plan = Plan(
        tuple(
            Group(tuple(step), StageOrder(order=order)) if isinstance(step, list) else step
            for step in steps
        )
    )
    assert build_plan(str(plan), REGISTRY) == plan


@pytest.mark.parametrize("name", sorted(REGISTRY.passes))
def test_every_pass_prints_as_its_bare_name_by_default(name: str) -> None:
    text = f"stages({name})" if REGISTRY.find_pass(name).only_in_stages else name
    assert str(build_plan(text, REGISTRY)) == text


@pytest.mark.parametrize("name", sorted(REGISTRY.presets))
def test_presets_expand_to_their_text_and_hold_together(name: str, registry: Registry) -> None:
    plan = build_plan(name, registry)
    assert str(plan) == registry.presets[name].text
    check_order(plan, final=(Packed,), backend="reference")


def test_a_preset_stands_between_other_passes(registry: Registry) -> None:
    plan = build_plan("whole,data-free", registry)
    assert [step.name for step in plan.passes()] == ["whole", "rtn-lower", "pack"]


@pytest.mark.parametrize(
    ("text", "what", "help_text"),
    [
        (
            "uniform{samples=1}",
            "the preset uniform takes no options",
            "write it out: quantize-vocab,stages(",
        ),
        ("pack,stages(rtn)", "rtn has stages(...) of its own", "\n        pack,stages(rtn)\n"),
        ("stages(pack,whole)", "whole needs the whole model", "\n" + 20 * " " + "^"),
        ("abmp-allocate{ration=0.1}", "abmp-allocate has no option 'ration'", "did you mean ratio"),
        ("pack{x=1}", "pack has no option 'x'", "it has no options"),
        ("calibrate-mcs{samples=many}", "calibrate-mcs refuses samples: ", "^"),
        ("calibrate-mcs{samples=1,2}", "calibrate-mcs refuses samples: ", "^"),
        ("calibrate-mcs{prefix=1}", "less than 1 (given '1')", "^"),
        ("sensitivity{damp=nan}", "sensitivity refuses damp: Input should be a finite", "^"),
        ("sensitivity{damp=inf}", "sensitivity refuses damp: Input should be a finite", "^"),
        (
            "trellis-lower{bits=2.3}",
            "refuses bits: they are 1 to 4 in eighths, as 1.5 or 2.125, or allocated (given '2.3')",
            "^",
        ),
        ("rtn-lower{bits=3}", "rtn-lower refuses bits: Input should be 1, 2, 4 or 8", "^"),
        ("daq-lower{compensation=exakt}", "'exact', 'diag' or 'none'", "^"),
        ("daq-lower{outlier-weight=0}", "refuses outlier-weight: ", "^"),
        ("daq-lower{feedback=false rounds=7}", "feedback=false does not read rounds", "^"),
        ("daq-lower{outlier-weight=1 sigma=3}", "outlier-weight=1 does not read sigma", "^"),
        ("measure-orders{how=fit rounds=1}", "how=fit does not read rounds", "^"),
    ],
)
def test_a_bad_option_says_what_and_where(
    text: str, what: str, help_text: str, registry: Registry
) -> None:
    with pytest.raises(InvalidPipeline) as caught:
        build_plan(text, registry)
    assert what in caught.value.what
    assert help_text in caught.value.help


def test_the_caret_of_a_bad_value_stands_below_its_pass(registry: Registry) -> None:
    with pytest.raises(InvalidPipeline) as caught:
        build_plan("pack, rtn-lower{bits=3}", registry)
    assert caught.value.help == "\n        pack, rtn-lower{bits=3}\n              ^"


def test_a_bad_override_names_the_option_and_the_nearest_value(registry: Registry) -> None:
    with pytest.raises(InvalidPipeline) as caught:
        build_plan("pack,default", registry, {"samples": 0, "length": 1})
    assert caught.value.what == "calibrate-cross does not take --samples 0 and --length 1"
    assert caught.value.help == "the least is --samples 1; the least is --length 2"


@pytest.mark.parametrize(
    ("text", "nearest"), [("daq-lowr", "daq-lower"), ("defualt", "default"), ("zz", "known: ")]
)
def test_an_unknown_name_offers_the_nearest(text: str, nearest: str, registry: Registry) -> None:
    with pytest.raises(UnknownName) as caught:
        build_plan(f"pack,{text}", registry)
    assert caught.value.what == f"no pass or preset is called {text!r}"
    assert nearest in caught.value.help


def test_overrides_go_to_every_pass_that_has_the_option(registry: Registry) -> None:
    text = "stages(calibrate-mcs,rtn-lower),polish{iterations=2},pack"
    plan = build_plan(text, registry, {"samples": 3, "seed": 5, "length": None})
    calibrate, _, polish, _ = plan.passes()
    assert calibrate == CalibrateMcs(samples=3, seed=5)
    assert polish == Polish(samples=3, seed=5, iterations=2)
    assert str(plan).startswith("stages(calibrate-mcs{samples=3 seed=5},")


@pytest.mark.parametrize(
    ("text", "overrides", "what"),
    [
        ("calibrate-mcs{samples=1}", {"samples": 2}, "both in the pipeline and as --samples"),
        ("data-free", {"samples": 2, "seed": 1}, "takes --samples, --seed"),
        ("calibrate-mcs", {"samples": 0}, "does not take --samples 0"),
    ],
)
def test_overrides_are_refused(
    text: str, overrides: dict[str, object], what: str, registry: Registry
) -> None:
    with pytest.raises(InvalidPipeline) as caught:
        build_plan(text, registry, overrides)
    assert what in caught.value.what


def test_all_unmet_needs_are_reported_together(registry: Registry) -> None:
    plan = build_plan("sensitivity,daq-lower", registry)
    with pytest.raises(MissingAnnotation) as caught:
        check_order(plan, final=(Packed,), backend="reference")
    nothing = "which nothing before it provides"
    assert caught.value.what == (
        "the pipeline has 3 unmet needs: "
        f"sensitivity reads @moment, {nothing}; "
        f"daq-lower reads @orders, {nothing}; backend reference reads @packed, {nothing}"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("stages(calibrate-mcs),sensitivity", "@moment, which is released at the end of stages"),
        ("calibrate-mcs,whole,sensitivity", "@moment, which is released at the end of a region"),
        ("ready,rtn-lower", "ready reads @lowered, which nothing"),
        ("rtn-lower,pack,rtn-lower", "reads @packed, which rtn-lower makes stale"),
    ],
)
def test_the_reason_of_an_unmet_need_is_given(text: str, why: str, registry: Registry) -> None:
    with pytest.raises(MissingAnnotation) as caught:
        check_order(build_plan(text, registry), final=(Packed,), backend="reference")
    assert why in caught.value.what


@pytest.mark.parametrize(
    "text",
    [
        "calibrate-mcs,stages(sensitivity,abmp-allocate,daq-lower),pack",
        "rtn-lower,ready,whole,ready,pack",
        "stages(rtn-lower),whole,pack",
        "rtn-lower,pack,rtn-lower,pack",
    ],
)
def test_needs_are_met_by_subclasses_and_across_barriers(text: str, registry: Registry) -> None:
    check_order(build_plan(text, registry), final=(Packed,), backend="reference")


def test_what_is_present_at_the_start_counts(registry: Registry) -> None:
    check_order(build_plan("pack", registry), present=(Lowered,))


def test_segments_split_at_barriers(registry: Registry) -> None:
    plan = build_plan("whole,stages(rtn-lower),pack,whole,whole,ready", registry)
    segments = [(",".join(map(str, s.items)), s.barrier) for s in plan.segments()]
    assert segments == [
        ("whole", True),
        ("stages(rtn-lower),pack", False),
        ("whole", True),
        ("whole", True),
        ("ready", False),
    ]


def test_place_and_cut_count_over_all_passes(registry: Registry) -> None:
    plan = build_plan("stages(rtn-lower,ready),pack,ready", registry)
    assert plan.place_of("rtn-lower") == 0
    assert plan.place_of("ready") == 3
    cuts = [str(plan.cut(place)) for place in range(4)]
    assert cuts == [
        "stages(rtn-lower)",
        "stages(rtn-lower,ready)",
        "stages(rtn-lower,ready),pack",
        "stages(rtn-lower,ready),pack,ready",
    ]
    with pytest.raises(QdcError, match="the pipeline has no pass 'rtn-lover'") as caught:
        plan.place_of("rtn-lover")
    assert "did you mean rtn-lower?" in caught.value.help
    with pytest.raises(QdcError) as unlike:
        plan.place_of("zzz")
    assert unlike.value.help.startswith("known: pack, ready, rtn-lower; it is: stages(")


@given(st.integers(0, 20))
def test_a_cut_is_a_prefix(place: int) -> None:
    plan = build_plan("stages(calibrate-mcs,rtn-lower),pack,odd,stages(odd,odd)", REGISTRY)
    passes = list(plan.passes())
    assert list(plan.cut(place).passes()) == passes[: place + 1]


def test_an_option_that_is_not_a_number_never_reaches_a_pass(registry: Registry) -> None:
    with pytest.raises(ValueError, match="finite"):
        Sensitivity(damp=math.nan)


def test_what_a_pass_used_up_cannot_be_read_again(registry: Registry) -> None:
    plan = build_plan("rtn-lower,pack,pack", registry)
    with pytest.raises(MissingAnnotation, match="pack reads @lowered, which pack used up"):
        check_order(plan, final=(Packed,), backend="reference")


@pytest.mark.parametrize(
    ("text", "returns"),
    [
        ("stages(calibrate-mcs,rtn-lower),pack", False),
        ("calibrate-mcs,rtn-lower,polish,pack", False),
        ("stages(calibrate-mcs,rtn-lower),polish,pack", True),
        ("stages(calibrate-mcs,rtn-lower),rtn-lower,pack", True),
        ("stages(calibrate-mcs,rtn-lower),stages(calibrate-mcs,rtn-lower),pack", True),
        ("stages(calibrate-mcs),stages(calibrate-mcs),rtn-lower,pack", True),
        ("stages{order=natural}(calibrate-mcs,rtn-lower),pack", False),
        ("stages{order=outputs-first}(calibrate-mcs,rtn-lower),pack", True),
    ],
)
def test_streams_hold_the_way_back_only_where_it_may_be_needed(
    text: str, returns: bool, registry: Registry
) -> None:
    assert build_plan(text, registry).returns() == returns


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("stages{order=odd}(pack)", "stages refuses order: Input should be 'natural' or 'outputs"),
        ("stages{order=natural order=natural}(pack)", "option order is given twice"),
        ("stages(rtn-lower,polish),pack", "polish needs whole regions"),
    ],
)
def test_a_bad_group_says_what_and_where(text: str, what: str, registry: Registry) -> None:
    with pytest.raises(InvalidPipeline) as caught:
        build_plan(text, registry)
    assert what in caught.value.what
    assert "^" in caught.value.help


def test_an_unknown_option_of_a_group_offers_the_nearest(registry: Registry) -> None:
    with pytest.raises(InvalidPipeline, match="stages has no option 'ordre'") as caught:
        build_plan("stages{ordre=natural}(pack)", registry)
    assert caught.value.help == "did you mean order?"


def test_the_order_of_stages_survives_a_cut(registry: Registry) -> None:
    plan = build_plan("stages{order=outputs-first}(calibrate-mcs,rtn-lower),pack", registry)
    assert str(plan.cut(0)) == "stages{order=outputs-first}(calibrate-mcs)"
