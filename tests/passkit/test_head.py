"""Predictions of a model that bends its logits, and derivatives through the bend."""

import pytest
import torch
from torch.nn import functional

from qdc.errors import UnsupportedModel
from qdc.frontend.tracer import trace
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import LayerGraph
from qdc.models.families import BUILT_IN
from qdc.passkit.counted import CountedPositions
from qdc.passkit.drawn import drawn_slope
from qdc.passkit.end_loss import EndLoss
from qdc.passkit.head import head_logits, output_head
from qdc.streaming.states import StateStore
from tests.support.published import config_of

CAP = 2.0
FACTS = ModelFacts(
    family="bent", mask_token_id=None, vocabulary=7, max_length=9, canvas=3, logit_cap=CAP
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_head_is_found_behind_the_cap() -> None:
    graph = trace(*BUILT_IN.build(config_of("diffusion-gemma"))).graph
    stage = output_head(graph, "help")
    assert stage.layers == ("lm_head",)
    facts = graph.model.model_copy(update={"logit_cap": None})
    without = LayerGraph(graph.structure.model_copy(update={"model": facts}))
    with pytest.raises(UnsupportedModel, match="the model ends in soft-cap"):
        output_head(without, "help")


def test_logits_stay_within_the_cap() -> None:
    hidden, head = drawn(5, 4), {"weight": drawn(7, 4, seed=1)}
    plain = head_logits(hidden, head)
    torch.testing.assert_close(head_logits(hidden, head, CAP), CAP * (plain / CAP).tanh())
    assert float(plain.abs().max()) > 2 * CAP


def test_derivatives_go_through_the_cap() -> None:
    tokens, head = torch.zeros(1, 3, dtype=torch.int64), {"weight": drawn(7, 4, seed=1)}
    other = {"weight": head["weight"] + 0.3 * drawn(7, 4, seed=2)}
    counted = CountedPositions.of(FACTS, everywhere=True)
    loss = EndLoss(head, other, counted, StateStore(), CAP)
    loss.add(tokens, None, drawn(1, 3, 4))
    hidden = drawn(1, 3, 4, seed=3).requires_grad_()

    def predicted(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (CAP * (functional.linear(value, weight) / CAP).tanh()).log_softmax(-1)

    right = predicted(drawn(1, 3, 4), head["weight"])
    due = (right.exp() * (right - predicted(hidden, other["weight"]))).sum()
    (expected,) = torch.autograd.grad(due, hidden)
    found, slope = loss.gradient(0, hidden.detach())
    assert found.total == pytest.approx(float(due.detach()), rel=1e-4)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-5)


def test_a_drawn_slope_goes_through_the_cap() -> None:
    hidden, head = drawn(1, 4).requires_grad_(), {"weight": drawn(7, 4, seed=1)}
    logits = head_logits(hidden, head, CAP)
    kinds = [torch.autograd.grad(-logits.log_softmax(-1)[0, token], hidden, retain_graph=True)[0]
             for token in range(7)]  # fmt: skip
    with torch.no_grad():
        found, unsure = drawn_slope(hidden, head, torch.tensor([0.4]), CAP)
    predicted = logits.softmax(-1)
    spread = predicted * (1 - predicted) * (1 - (logits / CAP).square()).square()
    assert unsure.item() == pytest.approx(spread.sum().item(), rel=1e-5)
    assert min(float((found - kind).abs().max()) for kind in kinds) < 1e-5
