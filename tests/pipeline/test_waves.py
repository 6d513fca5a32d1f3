"""Waves: stages that do not hang on each other, taken together as far as memory goes."""

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.frontend.opening import open_model
from qdc.ir.graph import LayerGraph, Stage
from qdc.pipeline.cutting import cut, statistics_bytes
from qdc.streaming.order import execution_order
from tests.support.experts import HIDDEN, WIDTH, write_mixture
from tests.support.graphs import two_blocks

EXPERTS = 5


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> LayerGraph:
    folder = tmp_path_factory.mktemp("waves") / "model"
    return open_model(write_mixture(folder, experts=EXPERTS))[1].graph


def short(stage: Stage) -> str:
    return stage.layers[0].rpartition(".")[2].removesuffix("_proj")


def test_the_experts_of_a_block_are_two_waves(mixture: LayerGraph) -> None:
    for region in mixture.regions:
        waves = mixture.waves[region.name].stages
        found = [{short(stage) for stage in wave} for wave in waves]
        assert found == [{"q"}, {"o"}, {"gate"}, {"down"}]
        assert [len(wave) for wave in waves] == [1, 1, EXPERTS, EXPERTS]
        assert sorted(s.value for wave in waves for s in wave) == sorted(
            stage.value for stage in region.stages
        )


def test_stages_of_a_wave_do_not_hang_on_each_other(mixture: LayerGraph) -> None:
    behind = {name: nx.descendants(mixture.edges, name) for name in mixture.edges}
    for waves in mixture.waves.values():
        for wave in waves.stages:
            for one in wave:
                assert not any(
                    set(other.layers) & behind[layer] for layer in one.layers for other in wave
                )


def test_values_are_computed_before_they_are_read(mixture: LayerGraph) -> None:
    order = execution_order(mixture)
    assert sorted(order) == sorted(node.name for node in mixture)
    place = {name: index for index, name in enumerate(order)}
    assert all(place[read] < place[name] for read, name in mixture.edges.edges)
    for region in mixture.regions:
        places = sorted(place[name] for name in region.nodes)
        assert places == list(range(places[0], places[0] + len(places)))
        assert place[region.nodes[0]] == places[0]


def test_blocks_without_a_router_stay_as_they_are() -> None:
    graph = two_blocks()
    assert execution_order(graph) == [node.name for node in graph]
    for region in graph.regions:
        assert graph.waves[region.name].stages == tuple((stage,) for stage in region.stages)


@settings(max_examples=30)
@given(memory=st.integers(1, 40 * 16 * WIDTH**2))
def test_parts_fit_the_memory_or_have_one_stage(mixture: LayerGraph, memory: int) -> None:
    region = mixture.regions[0]
    for wave in mixture.waves[region.name].stages:
        parts = cut(mixture, wave, memory)
        assert tuple(stage for part in parts for stage in part) == wave
        for part in parts:
            held = sum(statistics_bytes(mixture, stage) for stage in part)
            assert held <= memory or len(part) == 1


def test_a_wave_is_cut_into_even_parts(mixture: LayerGraph) -> None:
    region = mixture.regions[0]
    downs = mixture.waves[region.name].stages[3]
    each = 16 * HIDDEN**2
    assert [len(part) for part in cut(mixture, downs, 4 * each)] == [3, 2]
    assert [len(part) for part in cut(mixture, downs, 5 * each)] == [5]
    assert [len(part) for part in cut(mixture, downs, None)] == [5]
    assert [len(part) for part in cut(mixture, downs, 1)] == [1] * 5
