"""The preset arb-rc-2: ARB-LLM's row-column form without partitions, written out by hand."""

import numpy as np
import pytest
import torch

from qdc.ir.annotations import Factor
from qdc.passes.daq_lower import Daq, DaqLower
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from tests.support.units import correlated_moment, make_unit, noise, put_statistics


def arb_rc(block: np.ndarray, order: int, sweeps: int) -> np.ndarray:
    """Rows and columns in turn for one component after the other, then all signs again."""
    rest, parts = block.copy(), []
    for _ in range(order):
        row = np.abs(rest).mean(1)
        column = (np.abs(rest) / row[:, None]).mean(0)
        sign = np.where(rest >= 0, 1.0, -1.0)
        parts.append([row, column, sign])
        rest = rest - np.outer(row, column) * sign
    for _ in range(sweeps):
        for k, part in enumerate(parts):
            others = sum(np.outer(r, c) * b for i, (r, c, b) in enumerate(parts) if i != k)
            target = (block - others) * part[2]
            part[0] = target @ part[1] / (part[1] ** 2).sum()
            part[1] = part[0] @ target / (part[0] ** 2).sum()
        choices = []
        for pattern in np.ndindex(*(2,) * order):
            signs = 1 - 2 * np.array(pattern)
            written = sum(s * np.outer(r, c) for s, (r, c, _) in zip(signs, parts, strict=True))
            choices.append((signs, np.abs(block - written)))
        best = np.argmin([distance for _, distance in choices], axis=0)
        for k, part in enumerate(parts):
            part[2] = np.array([signs[k] for signs, _ in choices], dtype=float)[best]
    return np.asarray(sum(np.outer(r, c) * b for r, c, b in parts))


@pytest.mark.parametrize("order", [1, 2])
def test_unit_weights_reduce_to_it(order: int) -> None:
    plan = build_plan("arb-rc-2", standard_registry())
    (step,) = [s for s in plan.passes() if isinstance(s, DaqLower)]
    step = step.model_copy(update={"sweeps": 4, "tolerance": 0.0})
    weight, moment = noise(10, 160), correlated_moment(160)
    unit = make_unit(step, {"q": weight})
    put_statistics(unit, moment, (order, order))
    unit.step.run(unit)
    note = unit.graph.require("q", Daq)
    found = note.codec.dense(note.working(unit.tensors)).double().numpy()

    upper = unit.get(unit.graph.require("q", Factor).tensor).double().numpy()
    rest, expected = weight.double().numpy().copy(), np.zeros((10, 160))
    for part in (slice(0, 128), slice(128, 160)):
        expected[:, part] = arb_rc(rest[:, part], order, 4)
        error = (rest[:, part] - expected[:, part]) / np.diag(upper)[part]
        rest[:, part.stop :] -= error @ upper[part, part.stop :]
    # scales are rounded to fp16, and a sign whose levels are equally near may then change
    close = np.isclose(found, expected, rtol=0.01, atol=1e-3)
    assert close.mean() > 0.98
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
    assert note.outliers == 0
    assert torch.isfinite(torch.from_numpy(found)).all()
