"""The sparse feed-forward against its definition, token by token."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from qdc.models.experts import Expert, Router, Routing, Rows
from qdc.models.parts import Mixture

WIDTH, HIDDEN, EXPERTS = 6, 5, 4


class Sparse(nn.Module):
    """A router and its experts, as a block holds them."""

    def __init__(self, count: int, normalized: bool) -> None:
        super().__init__()
        self.gate = Router(WIDTH, EXPERTS, bias=False)
        self.routing = Routing(EXPERTS, count, normalized=normalized)
        self.experts = nn.ModuleList(Expert(WIDTH, HIDDEN, number) for number in range(EXPERTS))

    def forward(self, hidden: Tensor) -> Tensor:
        return Mixture("gate", "routing", "experts").run(self, hidden)


def sparse(count: int, normalized: bool, dtype: torch.dtype = torch.float32) -> Sparse:
    torch.manual_seed(count)
    module = Sparse(count, normalized)
    return module.to(dtype).requires_grad_(False)


def by_definition(module: Sparse, hidden: Tensor) -> Tensor:
    state = module.state_dict()
    out = torch.zeros_like(hidden)
    for place in torch.cartesian_prod(*map(torch.arange, hidden.shape[:2])).tolist():
        token = hidden[tuple(place)]
        shares = (state["gate.weight"] @ token).softmax(0)
        best = shares.topk(module.routing.count)
        scale = float(best.values.sum()) if module.routing.normalized else 1.0
        for expert, share in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            gate, up, down = (
                state[f"experts.{expert}.{leaf}_proj.weight"] for leaf in ("gate", "up", "down")
            )
            out[tuple(place)] += share / scale * (down @ (silu(gate @ token) * (up @ token)))
    return out


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("count", [1, 2, EXPERTS])
def test_each_token_gets_its_best_experts(count: int, normalized: bool) -> None:
    module = sparse(count, normalized)
    hidden = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(hidden), by_definition(module, hidden))


def test_a_single_token_leaves_experts_idle() -> None:
    module = sparse(1, normalized=False)
    hidden = torch.ones(1, 1, WIDTH)
    torch.testing.assert_close(module(hidden), by_definition(module, hidden))
    rows = [Rows(expert)(module.routing(module.gate(hidden))) for expert in range(EXPERTS)]
    assert sorted(map(len, rows)) == [0, 0, 0, 1]


def test_narrow_dtypes_stay_narrow() -> None:
    module = sparse(2, normalized=True, dtype=torch.bfloat16)
    found = module(torch.ones(2, 3, WIDTH, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert bool(found.isfinite().all())


def test_gradients_reach_experts_and_inputs() -> None:
    """Through the choice of tokens, as ``polish`` needs it; an idle expert's are zero."""
    module = sparse(1, normalized=False).requires_grad_(True)
    hidden = torch.ones(1, 2, WIDTH, requires_grad=True)
    module(hidden).square().sum().backward()
    assert hidden.grad is not None
    assert float(hidden.grad.abs().sum()) > 0
    grads = [module.get_parameter(f"experts.{e}.down_proj.weight").grad for e in range(EXPERTS)]
    assert sum(grad is not None and float(grad.abs().sum()) > 0 for grad in grads) == 1
