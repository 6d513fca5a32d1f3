"""How long each application of a pass is expected to take, for the time that is left of a run."""

from collections import defaultdict

import torch

from qdc.frontend.tracer import Program
from qdc.ir.tensors import torch_dtype
from qdc.pipeline.plan import Plan
from qdc.planning.rates import measure
from qdc.planning.walk import walk
from qdc.streaming.account import Account
from qdc.streaming.ledger import Ledger

Expected = list[tuple[int, float]]
"""Place of the pass, and seconds, of each application in the order of the run."""


def expected_seconds(
    program: Program, plan: Plan, device: torch.device, states: str, memory: int | None = None
) -> Expected | None:
    """What the plan expects of every application, by rates measured for a fraction of a second.

    Args:
        program: of the model, for this alone: annotations are put on its graph.
        plan: the passes.
        device: where they run.
        states: dtype of calibration states.
        memory: bytes that the statistics of a wave may take.

    Returns:
        None if a pass does not say what it does.
    """
    width = torch.empty(0, dtype=torch_dtype(states)).element_size()
    ledger = Ledger(shared=device.type == "cpu")
    account = Account(program, ledger, held=width, returns=plan.returns(), memory=memory)
    rates, found, before = measure(device), Expected(), defaultdict[int, float](float)

    def applied(place: int) -> None:
        now = rates.seconds(account.work[place])
        found.append((place, now - before[place]))
        before[place] = now

    walk(plan, account, applied)
    return None if account.unknown else found
