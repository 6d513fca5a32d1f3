"""Every layer has one owner, and no rank has much more to do than it must."""

import math

from hypothesis import given
from hypothesis import strategies as st

from qdc.distributed.ownership import owners, pack
from qdc.distributed.world import World
from qdc.ir.graph import Node
from tests.support.graphs import linear

COSTS = st.lists(st.integers(0, 1000), max_size=12)
RANKS = st.integers(1, 6)


def stage(name: str, *rows: int, columns: int = 8) -> list[Node]:
    return [linear(f"{name}{place}", "x", count, columns) for place, count in enumerate(rows)]


@given(COSTS, RANKS)
def test_the_longest_load_is_within_grahams_bound(costs: list[int], ranks: int) -> None:
    found = pack(costs, ranks)
    assert all(0 <= rank < ranks for rank in found)
    loads = [
        sum(c for c, r in zip(costs, found, strict=True) if r == rank) for rank in range(ranks)
    ]
    largest = sorted(costs, reverse=True)
    # Lower bounds of the optimum: the mean, the largest, and two that must share a rank.
    shared = sum(largest[ranks - 1 : ranks + 1]) if len(costs) > ranks else 0
    least = max(math.ceil(sum(costs) / ranks), max(costs, default=0), shared)
    assert max(loads) <= 2 * least
    assert max(loads) - min(loads) <= max(costs, default=0)


def test_the_costliest_is_placed_first() -> None:
    assert pack([1, 5, 4, 2], 2) == [0, 0, 1, 1]
    assert pack([3, 3, 2, 2, 2], 2) == [0, 1, 0, 1, 0]


def test_equals_go_to_the_rank_with_the_least_to_do_elsewhere() -> None:
    assert pack([2, 2], 3, before=[5, 0, 1]) == [1, 2]


@given(st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=5), max_size=4), RANKS)
def test_each_layer_has_one_owner(rows: list[list[int]], ranks: int) -> None:
    stages = [stage(f"s{place}.", *counts) for place, counts in enumerate(rows)]
    found = owners([[nodes] for nodes in stages], ranks)
    assert set(found) == {node.name for nodes in stages for node in nodes}
    for nodes in stages:
        used = {found[node.name] for node in nodes}
        assert len(used) == min(ranks, len(nodes))


def test_the_single_layers_of_a_region_are_spread() -> None:
    """A stage of one layer cannot be shared, so different ranks get different stages."""
    stages = [stage("a", 4, 4, 4), stage("b", 4), stage("c", 9, 9), stage("d", 4)]
    found = owners([[nodes] for nodes in stages], 2)
    assert {found["a0"], found["a1"]} == {0, 1}
    assert found["b0"] == 1  # rank 0 has two of the first stage


@given(st.integers(0, 40), RANKS)
def test_parts_tile_what_is_shared(count: int, ranks: int) -> None:
    parts = [World(rank, ranks).part(count) for rank in range(ranks)]
    assert [place for part in parts for place in range(count)[part]] == list(range(count))
    sizes = [len(range(count)[part]) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
