"""Walk through a compile as the runner does, asking every pass instead of running it."""

from collections.abc import Callable

from qdc.ir.keys import table_key
from qdc.pipeline.plan import Plan
from qdc.pipeline.traversal import (
    Apply,
    EndStep,
    Finish,
    Leave,
    ReleaseScratch,
    Scope,
    Spread,
    Traversal,
)
from qdc.planning.storage import nbytes, stored
from qdc.streaming.account import LOADED, SCRATCH, STATES, TABLE, Account
from qdc.streaming.forecast import Forecast

MOST_NAMED = 4
"""Layers of a unit that are named."""


def walk(plan: Plan, account: Account, applied: Callable[[int], None] = lambda place: None) -> None:
    """Forecast every pass on every unit, and let go of what the runner lets go of.

    Args:
        plan: the passes.
        account: adds up what they foretell.
        applied: told the place of a pass after each of its units.
    """
    graph, ledger = account.program.graph, account.ledger
    traversal = Traversal(plan, graph, account.memory)
    for event in (event for step in traversal.steps for event in traversal.events(step)):
        match event:
            case Spread(nodes):
                account.read(account.ranks, nodes)
            case Apply(scope):
                ledger.moment = _moment(scope)
                scope.step.forecast(Forecast.of(scope, account))
                applied(scope.place)
            case ReleaseScratch(layers):
                for value in {name for layer in layers for name in graph[layer].inputs}:
                    ledger.release_all(SCRATCH + table_key(value, ""))
            case Leave(region):
                ledger.moment = f"leaving {region.name}"
                for stream in account.streams.values():
                    stream.leave(region)
                ledger.release(LOADED + region.name)
            case Finish(region):
                account.read(1, region.nodes)
                for name in region.nodes:
                    ledger.release(TABLE + name)
            case EndStep(segment, last):
                if segment:
                    account.streams.clear()
                    ledger.release_all(STATES)
                    ledger.release_all(LOADED)
                if not last:
                    account.scratch_bytes += ledger.release_all(TABLE)
    # What lies outside of the regions is written together, read back from the disk.
    ledger.moment = "writing what lies outside the regions"
    account.read(1, [node.name for node in graph.outside()])
    outside = stored(account, [node.name for node in graph.outside()])
    ledger.work("the last shard", sum(nbytes(kind) for _, kind in outside), "host")


def _moment(scope: Scope) -> str:
    where = "the whole model" if scope.region is None else scope.region.name
    if not scope.whole_region:
        layers = [name for stage in scope.stages for name in stage.layers]
        more = f" and {len(layers) - MOST_NAMED} more" if len(layers) > MOST_NAMED else ""
        where = ", ".join(layers[:MOST_NAMED]) + more
    return f"{scope.step.name} on {where}"
