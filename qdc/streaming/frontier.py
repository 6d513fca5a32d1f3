"""What to keep in memory between two stages: a minimum cut, by size, on the graph.

All values before the boundary can be computed now. Those that later nodes read must be there again:
either kept, or recomputed from what is kept. Linears and attention are never recomputed; norms,
activations and sums are, where that saves memory.
"""

from collections.abc import Collection, Mapping

import networkx as nx

SOURCE, SINK = "source", "sink"


def values_to_keep(
    edges: "nx.DiGraph[str]",
    reach: Collection[str],
    needed: Collection[str],
    sizes: Mapping[str, int],
    costly: Collection[str],
) -> frozenset[str]:
    """Choose the smallest set of values from which all needed ones follow.

    Args:
        edges: ``producer -> consumer`` by name.
        reach: values that can be had now; a value whose producers are not all among them is
            itself a starting point.
        needed: those of them that later nodes read.
        sizes: size of each value in ``reach``, positive.
        costly: values that may be kept but never recomputed later.

    Returns:
        The values to keep.
    """
    inside = set(reach)
    flow: nx.DiGraph[str | tuple[str, str]] = nx.DiGraph()
    flow.add_nodes_from((SOURCE, SINK))
    for name in reach:
        flow.add_edge(("in", name), ("out", name), capacity=sizes[name])
        producers = list(edges.predecessors(name))
        if name in costly or not producers or not inside.issuperset(producers):
            flow.add_edge(SOURCE, ("in", name))
            continue
        flow.add_edges_from((("out", producer), ("in", name)) for producer in producers)
    flow.add_edges_from((("out", name), SINK) for name in sorted(needed))
    _, (source_side, _) = nx.minimum_cut(flow, SOURCE, SINK)
    return frozenset(
        name for name in reach if ("in", name) in source_side and ("out", name) not in source_side
    )
