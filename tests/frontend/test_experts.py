"""A mixture of experts as a layer graph."""

import pytest

from qdc.frontend.coverage import coverage
from qdc.frontend.opening import open_model
from qdc.frontend.tracer import Program
from qdc.ir.dump import from_bytes, to_bytes
from qdc.ir.graph import LayerGraph
from qdc.ir.printer import render
from qdc.ir.routing import rows_of
from qdc.ir.verify import verify
from qdc.pipeline.registry import standard_registry
from tests.conftest import Golden
from tests.support.experts import write_mixture

EXPERTS = 3


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    folder = tmp_path_factory.mktemp("experts") / "model"
    return open_model(write_mixture(folder, experts=EXPERTS))[1]


@pytest.fixture(scope="module")
def graph(program: Program) -> LayerGraph:
    return program.graph


def test_text_of_a_mixture(golden: Golden, graph: LayerGraph) -> None:
    golden(render(graph, "*.layers.1.*"))


def test_stages_are_those_of_attention_and_two_for_each_expert(graph: LayerGraph) -> None:
    for region in graph.regions:
        at = f"{region.name}."
        stages = [[name.removeprefix(at) for name in stage.layers] for stage in region.stages]
        experts = [f"mlp.experts.{number}" for number in range(EXPERTS)]
        assert stages == [
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ["self_attn.o_proj"],
            *(
                names
                for e in experts
                for names in ([f"{e}.gate_proj", f"{e}.up_proj"], [f"{e}.down_proj"])
            ),
        ]


def test_routed_values_lead_to_their_tokens(graph: LayerGraph) -> None:
    for region in graph.regions:
        dense, experts = region.stages[:2], region.stages[2:]
        assert [rows_of(graph, stage.value) for stage in dense] == [None, None]
        for number, stage in enumerate(experts):
            rows = f"{region.name}.mlp.experts.{number // 2}.rows"
            assert rows_of(graph, stage.value) == rows
            assert str(graph[rows].type) == "i64[N]"


def test_the_router_is_kept_and_says_so(graph: LayerGraph) -> None:
    fates = {row.tensor: (row.status, row.reason) for row in coverage(graph)}
    routers = [name for name in fates if name.endswith("mlp.gate.weight")]
    assert len(routers) == 2
    assert {fates[name] for name in routers} == {("kept", "router")}
    assert sum(status == "quantized" for status, _ in fates.values()) == 2 * (4 + 3 * EXPERTS)


def test_the_graph_is_valid_and_survives_a_dump(graph: LayerGraph) -> None:
    verify(graph)
    assert (
        from_bytes(to_bytes(graph), standard_registry().annotations()).structure == graph.structure
    )
