"""Formats by parts that gradients move: where they start, their derivatives, a step downhill."""

import pytest
import torch
from torch import Tensor

from qdc.format.codec import Lowered
from qdc.format.relaxation import Relaxation, TrainableKind
from qdc.passes.arb_lower import ArbLower
from qdc.passes.billm_lower import BillmLower
from qdc.passes.pb_llm_lower import PbLlmLower
from qdc.pipeline.passbase import Pass
from tests.support.partitions import lowered
from tests.support.units import correlated_moment, noise

CASES: list[Pass] = [
    BillmLower(compensation="diag", feedback=False),
    BillmLower(reassign=True),
    ArbLower(reassign=True),
    ArbLower(salient_classes=True, salient=9),
    ArbLower(salient_classes=True, salient=9, scales="mean"),
    PbLlmLower(),
    PbLlmLower(group=64, low=0.5),
]
COLUMNS = 136


def relaxed(step: Pass, weight: Tensor) -> tuple[Lowered, dict[str, Tensor], Relaxation]:
    unit, _ = lowered(type(step), weight, correlated_moment(COLUMNS), **step.model_dump())
    note = unit.graph.require("q", Lowered)
    working = note.working(unit.tensors)
    return note, working, note.codec.relax(working, weight)


@pytest.mark.parametrize("step", CASES, ids=str)
def test_it_starts_where_it_was_and_moves_downhill(step: Pass) -> None:
    weight = noise(6, COLUMNS)
    note, working, layer = relaxed(step, weight)
    before = note.codec.dense(working)
    torch.testing.assert_close(layer.dense().detach(), before, rtol=1e-5, atol=1e-6)
    again = layer.working()
    assert {s: t.dtype for s, t in again.items()} == {s: t.dtype for s, t in working.items()}
    torch.testing.assert_close(note.codec.dense(again), before, rtol=1e-5, atol=1e-6)
    note.codec.pack_exactly(again, "q")

    rates = {TrainableKind.CODE: 0.02, TrainableKind.SCALE: 0.01}
    optimizer = torch.optim.Adam(
        [{"params": [tensor], "lr": rates[kind] * size} for kind, tensor, size in layer.trainable()]
    )
    goal = 1.5 * weight
    for _ in range(40):
        optimizer.zero_grad()
        loss = (layer.dense() - goal).square().sum()
        torch.autograd.backward(loss)
        optimizer.step()
    after = note.codec.dense(layer.working())
    assert float((after - goal).norm()) < 0.9 * float((before - goal).norm())


@pytest.mark.parametrize("step", CASES, ids=str)
def test_gradients_are_straight_through_and_exact_for_scales(step: Pass) -> None:
    _, _, layer = relaxed(step, noise(3, COLUMNS))
    seen = noise(3, COLUMNS, 1)
    torch.autograd.backward((layer.dense() * seen).sum())
    for kind, tensor, size in layer.trainable():
        assert tensor.grad is not None
        if kind is TrainableKind.CODE:
            assert torch.equal(tensor.grad, seen)
            continue
        # With all scales of a kind a little larger, and the codes as they are.
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                tensor.mul_(1 + sign * 1e-3)
                values.append(float((layer.dense() * seen).sum(dtype=torch.float64)))
                tensor.div_(1 + sign * 1e-3)
        slope = (values[0] - values[1]) / 2e-3
        expected = float((tensor.grad * tensor.detach()).sum())
        assert slope == pytest.approx(expected, abs=0.02 * size * tensor.numel() ** 0.5 + 1e-4)


def test_scales_that_grew_beyond_fp16_are_refused() -> None:
    _, _, layer = relaxed(PbLlmLower(), noise(3, COLUMNS))
    with torch.no_grad():
        layer.trainable()[1][1].fill_(1e6)
    with pytest.raises(OverflowError, match="not finite in fp16"):
        layer.working()
