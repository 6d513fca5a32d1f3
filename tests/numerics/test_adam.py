"""Adam takes the steps of torch's class, and imports nothing for it."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from qdc.numerics.adam import Adam

BETAS = 0.8, 0.95


def start() -> list[Tensor]:
    return [torch.linspace(-1, 1, 12).view(3, 4), torch.ones(5), torch.zeros(2)]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_steps_are_those_of_the_class(amsgrad: bool) -> None:
    ours, theirs = start(), [torch.nn.Parameter(tensor) for tensor in start()]
    rates, shares = (0.1, 0.02, 0.3), (1.0, 0.5, 0.25)
    optimizer = Adam(list(zip(ours, rates, strict=True)), BETAS, amsgrad=amsgrad)
    groups = [{"params": [p], "lr": rate} for p, rate in zip(theirs, rates, strict=True)]
    known = torch.optim.Adam(groups, betas=BETAS, amsgrad=amsgrad)
    schedule = torch.optim.lr_scheduler.LambdaLR(known, lambda step: shares[min(step, 2)])
    for number, share in enumerate(shares):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = (mine.detach() - number).sin()
            other.grad = mine.grad.clone()
        optimizer.step(share)
        known.step()
        schedule.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_has_no_gradient_stays() -> None:
    moved, kept = torch.ones(2), torch.ones(2)
    optimizer = Adam([(moved, 0.1), (kept, 0.1)], BETAS)
    moved.grad = torch.ones(2)
    optimizer.step()
    assert bool((moved < 1).all())
    assert bool((kept == 1).all())
    optimizer.forget()
    assert moved.grad is None


def test_neither_steps_nor_derivatives_import_what_torch_compiles_with() -> None:
    code = """
import sys, torch
from qdc.numerics.adam import Adam
from qdc.passkit.course import push_back
leaf = torch.ones(3, requires_grad=True)
push_back([(2 * leaf, torch.ones(3)), (leaf, torch.ones(3))])
Adam([(leaf, 0.1)], (0.9, 0.95)).step()
print(leaf.grad.tolist(), [name for name in ("sympy", "torch._dynamo") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[3.0, 3.0, 3.0] []"
