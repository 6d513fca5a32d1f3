"""The order of a compile: what happens, to which layers, and what may be let go of when."""

from collections.abc import Sequence

from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import Plan
from qdc.pipeline.registry import standard_registry
from qdc.pipeline.traversal import (
    Apply,
    EndStep,
    Event,
    Finish,
    Leave,
    ReleaseScratch,
    Spread,
    Traversal,
)
from tests.support.graphs import two_blocks

STAGEWISE = "stages(calibrate-mcs,sensitivity,abmp-allocate,daq-lower),pack"
WHOLE = "calibrate-mcs,sensitivity,measure-orders,allocate{scope=model},daq-lower,pack"


def traversal(text: str) -> Traversal:
    return Traversal(build_plan(text, standard_registry()) if text else Plan(()), two_blocks())


def told(event: Event) -> str:
    match event:
        case Spread(nodes):
            regions = {name.split(".")[0] for name in nodes if "." in name}
            return f"spread {'+'.join(sorted(regions))}"
        case Apply(scope):
            where = "all" if scope.region is None else scope.region.name
            where = where if scope.whole_region else "+".join(scope.stages[0].layers)
            return f"{scope.place} {scope.step.name} {where}"
        case ReleaseScratch(layers):
            return f"release {'+'.join(layers)}"
        case Leave(region):
            return f"leave {region.name}"
        case Finish(region):
            return f"finish {region.name}"
        case EndStep(segment, last):
            return f"end step{' and segment' if segment else ''}{', last' if last else ''}"


def story(text: str) -> list[list[str]]:
    found = traversal(text)
    return [[told(event) for event in found.events(step)] for step in found.steps]


def flat(story: Sequence[Sequence[str]]) -> list[str]:
    return [line for step in story for line in step]


def test_stage_by_stage() -> None:
    first, second = story(STAGEWISE)
    assert first == [
        "0 calibrate-mcs h0.gate+h0.up",
        "1 sensitivity h0.gate+h0.up",
        "2 abmp-allocate h0.gate+h0.up",
        "3 daq-lower h0.gate+h0.up",
        "release h0.gate+h0.up",
        "0 calibrate-mcs h0.down",
        "1 sensitivity h0.down",
        "2 abmp-allocate h0.down",
        "3 daq-lower h0.down",
        "release h0.down",
        "4 pack h0",
        "release h0.gate+h0.up+h0.down",
        "leave h0",
        "finish h0",
        "end step, last",
    ]
    assert second == [
        *(line.replace("h0", "h1") for line in first[:-1]),
        "end step and segment, last",
    ]


def test_a_barrier_ends_streams_and_what_is_before_it_waits() -> None:
    before, barrier, after = story(WHOLE)[1:4]
    assert before[-2:] == ["leave h1", "end step and segment"]
    assert barrier == ["3 allocate all", "end step and segment"]
    assert after[0] == "4 daq-lower h0"
    assert "finish h1" not in flat(story(WHOLE)[:3])


def test_what_a_pass_may_read_on_every_process_is_there_before() -> None:
    first, _, whole, last, _ = story("rtn-lower,distill,polish,pack")
    assert first[0] == "0 rtn-lower h0"
    assert first[-3:] == ["leave h0", "spread h0", "end step"]
    spread = "spread h0+h1"
    assert whole == [spread, "1 distill all", spread, "end step and segment"]
    assert last[:3] == ["spread h0", "2 polish h0", "3 pack h0"]
    assert last[-2:] == ["finish h0", "end step, last"]


def test_regions_are_handed_on_where_a_barrier_is_the_last() -> None:
    text = "calibrate-mcs,sensitivity,measure-orders,allocate{scope=model}"
    *_, first, second = story(text)
    assert first == ["finish h0", "end step, last"]
    assert second == ["finish h1", "end step and segment, last"]


def test_nothing_to_do_still_hands_the_regions_on() -> None:
    assert flat(story("")) == [
        "finish h0",
        "end step, last",
        "finish h1",
        "end step and segment, last",
    ]


def test_every_pass_meets_every_layer_once() -> None:
    for text in (STAGEWISE, WHOLE):
        found = traversal(text)
        scopes = [
            event.scope
            for step in found.steps
            for event in found.events(step)
            if isinstance(event, Apply)
        ]
        assert len(scopes) == found.applications
        for place, wanted in enumerate(found.plan.passes()):
            mine = [scope for scope in scopes if scope.place == place]
            assert {type(scope.step) for scope in mine} == {type(wanted)}
            layers = [layer for scope in mine for s in scope.stages for layer in s.layers]
            assert sorted(layers) == sorted(node.name for node in found.graph.layers())
