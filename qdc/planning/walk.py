"""Walk through a compile as the runner does, asking every pass instead of running it."""

from qdc.ir.graph import Node
from qdc.pipeline.plan import Plan
from qdc.pipeline.traversal import (
    Apply,
    EndSegment,
    EndStep,
    Finish,
    Leave,
    ReleaseScratch,
    Scope,
    Traversal,
)
from qdc.streaming.account import Account
from qdc.streaming.forecast import Forecast


def walk(plan: Plan, account: Account) -> None:
    """Forecast every pass on every unit, and let go of what the runner lets go of."""
    traversal = Traversal(plan, account.program.graph)
    for step in traversal.steps:
        for event in traversal.events(step):
            match event:
                case Apply(scope):
                    account.ledger.moment = _moment(scope)
                    scope.step.forecast(Forecast.of(scope, account))
                case ReleaseScratch(layers):
                    account.release_scratch(layers)
                case Leave(region):
                    account.ledger.moment = f"leaving {region.name}"
                    account.leave(region)
                case Finish(region):
                    account.finish(region)
                case EndSegment():
                    account.end_segment()
                case EndStep(last):
                    if not last:
                        account.spill()
    _finish(account)


def _moment(scope: Scope) -> str:
    where = "the whole model" if scope.region is None else scope.region.name
    if not scope.whole_region:
        where = ", ".join(scope.stages[0].layers)
    return f"{scope.step.name} on {where}"


def _finish(account: Account) -> None:
    """What lies outside of the regions is written together, read back from the disk."""
    account.ledger.moment = "writing what lies outside the regions"
    nbytes = sum(_stored(account, node) for node in account.program.graph.outside())
    account.ledger.work("the last shard", nbytes, "host")


def _stored(account: Account, node: Node) -> int:
    codec = account.codecs.get(node.name)
    if codec is not None:
        return codec.nbytes
    return sum(parameter.nbytes for parameter in node.parameters)
