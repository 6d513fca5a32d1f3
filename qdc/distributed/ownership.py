"""Who lowers what: greedy bin packing of layers over ranks.

Source: longest processing time first (Graham, Bounds on multiprocessing timing anomalies, 1969): no
rank gets more than 4/3 - 1/(3 ranks) of the least possible longest load.
"""

from collections.abc import Iterable, Mapping, Sequence

from qdc.ir.graph import Node

WORK = 16384
"""What fitting a weight costs besides passing its error on, in columns: see docs/scaling.md."""


def cost(node: Node) -> int:
    """What lowering a layer costs, in weights times columns.

    Its error moves to all later columns, ``rows * columns^2``, and every weight is fitted.
    """
    return node.rows * node.columns * (node.columns + WORK)


def pack(costs: Sequence[float], ranks: int, before: Sequence[float] = ()) -> list[int]:
    """Give each item to a rank: the costliest first, always to the rank with the least to do.

    Args:
        costs: of the items, at least 0.
        ranks: how many there are.
        before: what each rank has to do at other times, which decides between equals.

    Returns:
        The rank of each item.
    """
    loads, others = [0.0] * ranks, list(before) or [0.0] * ranks
    found = [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        rank = min(range(ranks), key=lambda rank: (loads[rank], others[rank] + loads[rank], rank))
        loads[rank] += costs[item]
        found[item] = rank
    return found


def owners(stages: Iterable[Sequence[Node]], ranks: int) -> Mapping[str, int]:
    """The rank that owns each layer of a region, by name.

    Every stage is balanced by itself, since a stage is finished before the next one is calibrated;
    between equals the rank with the least of the region decides, for passes over whole regions.
    """
    found: dict[str, int] = {}
    loads = [0.0] * ranks
    for nodes in stages:
        costs = [float(cost(node)) for node in nodes]
        for node, each, rank in zip(nodes, costs, pack(costs, ranks, loads), strict=True):
            found[node.name] = rank
            loads[rank] += each
    return found
