"""Who lowers what: greedy bin packing of layers over ranks.

Source: longest processing time first (Graham, Bounds on multiprocessing timing anomalies, 1969): no
rank gets more than 4/3 - 1/(3 ranks) of the least possible longest load.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from qdc.ir.graph import Node

WORK = 16384
"""What fitting a weight costs besides passing its error on, in columns: see docs/scaling.md."""

SLACK = 1.02
"""How much longer the longest load may be if layers that read one value stay together."""


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


def owners(waves: Iterable[Sequence[Sequence[Node]]], ranks: int) -> Mapping[str, int]:
    """The rank that owns each layer of a region, by name.

    Every wave is balanced by itself, since a wave is finished before the next one is calibrated;
    between equals the rank with the least of the region decides, for passes over whole regions.
    The layers of a stage share a moment, so they stay together where there are stages enough.

    Args:
        waves: the layers of each stage of each wave.
        ranks: how many there are.
    """
    found: dict[str, int] = {}
    loads = [0.0] * ranks
    for stages in waves:
        alone = [[node] for nodes in stages for node in nodes]
        together = [list(nodes) for nodes in stages if nodes]
        apart, joined = (_shared(bundles, ranks, loads) for bundles in (alone, together))
        close = len(together) > 1 and max(joined.loads) <= SLACK * max(apart.loads)
        best = joined if close else apart
        found |= best.owners
        loads = [before + more for before, more in zip(loads, best.loads, strict=True)]
    return found


class _Shared(NamedTuple):
    owners: dict[str, int]
    loads: list[float]


def _shared(bundles: Sequence[Sequence[Node]], ranks: int, before: Sequence[float]) -> _Shared:
    """Give bundles of layers to ranks."""
    costs = [float(sum(map(cost, nodes))) for nodes in bundles]
    places = pack(costs, ranks, before)
    loads = [0.0] * ranks
    for each, rank in zip(costs, places, strict=True):
        loads[rank] += each
    pairs = zip(bundles, places, strict=True)
    return _Shared({node.name: rank for nodes, rank in pairs for node in nodes}, loads)
