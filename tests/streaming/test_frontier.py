"""The minimum cut between two stages, against all subsets of small graphs."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.streaming.frontier import values_to_keep


@dataclass(frozen=True)
class Case:
    """A graph, what can be had now, and what is needed later."""

    edges: tuple[tuple[str, str], ...]
    reach: tuple[str, ...]
    needed: frozenset[str]
    sizes: dict[str, int]
    costly: frozenset[str]

    @property
    def graph(self) -> "nx.DiGraph[str]":
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(f"v{n}" for n in range(9))
        graph.add_edges_from(self.edges)
        return graph

    def cheapest(self) -> frozenset[str]:
        return values_to_keep(self.graph, self.reach, self.needed, self.sizes, self.costly)

    def size(self, kept: Collection[str]) -> int:
        return sum(self.sizes[name] for name in kept)

    def suffices(self, kept: Collection[str]) -> bool:
        """Whether all needed values follow from the kept ones without costly recomputing."""
        graph, have = self.graph, set(kept)
        for name in self.reach:  # in topological order
            producers = set(graph.predecessors(name))
            free = name not in self.costly and producers and producers <= have
            if free:
                have.add(name)
        return self.needed <= have


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 7))
    names = [f"v{n}" for n in range(count)]
    pairs = list(combinations(names, 2))
    edges = tuple(draw(st.lists(st.sampled_from(pairs), unique=True))) if pairs else ()
    reach = tuple(n for n in names if draw(st.integers(0, 5)))
    inside = st.frozensets(st.sampled_from(reach)) if reach else st.just(frozenset[str]())
    return Case(
        edges=edges,
        reach=reach,
        needed=draw(inside),
        sizes={name: draw(st.integers(1, 9)) for name in reach},
        costly=draw(inside),
    )


@settings(max_examples=300)
@given(cases())
def test_the_cut_is_valid_and_as_small_as_any(case: Case) -> None:
    kept = case.cheapest()
    assert kept <= set(case.reach)
    assert case.suffices(kept)
    subsets = (s for r in range(len(case.reach) + 1) for s in combinations(case.reach, r))
    assert case.size(kept) == min(case.size(s) for s in subsets if case.suffices(s))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"v0": 4, "v1": 4, "v2": 3}, {"v0"}),
        ({"v0": 8, "v1": 4, "v2": 3}, {"v1", "v2"}),
    ],
)
def test_one_source_is_kept_or_its_two_readers(sizes: dict[str, int], expected: set[str]) -> None:
    edges = (("v0", "v1"), ("v0", "v2"))
    case = Case(edges, ("v0", "v1", "v2"), frozenset({"v1", "v2"}), sizes, frozenset())
    assert case.cheapest() == expected


def test_a_costly_value_is_kept_though_its_source_is_smaller() -> None:
    sizes = {"v0": 1, "v1": 9}
    case = Case((("v0", "v1"),), ("v0", "v1"), frozenset({"v1"}), sizes, frozenset({"v1"}))
    assert case.cheapest() == {"v1"}


def test_nothing_is_kept_if_nothing_is_needed() -> None:
    assert Case((), ("v0",), frozenset(), {"v0": 1}, frozenset()).cheapest() == frozenset()
