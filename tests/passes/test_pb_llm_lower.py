"""pb-llm-lower: the published column loop by hand, its limits, what our loop gains."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from qdc.passes.gptq_lower import GptqLower
from qdc.passes.pb_llm_lower import PbLlm, PbLlmLower
from tests.support.partitions import agree, cost, lowered, upper_of
from tests.support.units import correlated_moment, noise

PUBLISHED: dict[str, Any] = {"rounds": 0, "sweeps": 0, "mean": "zeroed", "span": "all"}
COLUMNS = 160


def column_loop(weight: Tensor, upper: Tensor, options: dict[str, Any]) -> tuple[Any, Any]:
    """The mask, and the layer: fixed levels, each error moved on to all columns to come."""
    w, u = weight.double().numpy(), upper.double().numpy()
    score = np.abs(w) if options["metric"] == "magnitude" else (w / np.diag(u)) ** 2
    flat = np.zeros(w.size, dtype=bool)
    flat[np.argsort(-score.ravel(), kind="stable")[: w.size - round(0.9 * w.size)]] = True
    marked = flat.reshape(w.shape)
    rest, result = w.copy(), np.zeros_like(w)
    levels = []
    for row, chosen in zip(w, marked, strict=True):
        low = np.where(chosen, 0, row) if options["mean"] == "zeroed" else row[~chosen]
        high = row if options["span"] == "all" else row[chosen]
        high = high if len(high) else np.zeros(1)
        mean, least = low.mean(), high.min()
        levels.append((mean, np.abs(low - mean).mean(), least, (high.max() - least) / 255))
    mean, scale, least, step = np.array(levels).T
    for j in range(w.shape[1]):
        seen = rest[:, j]
        low = mean + scale * np.where(seen >= mean, 1, -1)
        code = np.clip(np.round((seen - least) / np.where(step > 0, step, 1)), 0, 255)
        result[:, j] = np.where(marked[:, j], least + step * code, low)
        error = (seen - result[:, j]) / u[j, j]
        rest[:, j + 1 :] -= np.outer(error, u[j, j + 1 :])
    return marked, result


@pytest.mark.parametrize("metric", ["hessian", "magnitude"])
@pytest.mark.parametrize("quirks", [{"mean": "zeroed", "span": "all"}, {}])
def test_is_the_published_loop(metric: str, quirks: dict[str, str]) -> None:
    weight, moment = noise(10, COLUMNS) + 0.01, correlated_moment(COLUMNS)
    options = {"metric": metric, "rounds": 0, "sweeps": 0, **quirks}
    unit, found = lowered(PbLlmLower, weight, moment, **options)
    wanted = {"mean": "masked", "span": "marked", **options}
    marked, expected = column_loop(weight, upper_of(unit), wanted)
    note = unit.graph.require("q", PbLlm)
    working = note.working(unit.tensors)
    assert np.array_equal(working["marked"].numpy() > 0, marked)
    # fp16 levels flip a few codes, and what follows in their rows with them
    assert agree(found, expected) or np.isclose(found, expected, rtol=0.02, atol=2e-3).mean() > 0.9


@pytest.mark.parametrize("group", [0, 64])
def test_so_many_elements_of_each_group_are_marked(group: int) -> None:
    weight, moment = noise(7, COLUMNS), correlated_moment(COLUMNS)
    unit, _ = lowered(PbLlmLower, weight, moment, group=group, low=0.83)
    note = unit.graph.require("q", PbLlm)
    marked = note.working(unit.tensors)["marked"]
    widths = [64, 64, 32] if group else [COLUMNS]
    found = [int(part.sum()) for part in torch.split(marked, widths, dim=1)]
    assert found == [7 * width - round(0.83 * 7 * width) for width in widths]
    assert note.codec.salient == sum(found)
    assert note.codec == PbLlmLower(group=group, low=0.83).codec(unit.graph["q"])


def test_nothing_marked_is_binarisation_and_everything_is_gptq() -> None:
    weight, moment = noise(8, 96) + 0.02, correlated_moment(96)
    plain: dict[str, Any] = {"rounds": 0, "sweeps": 0}
    _, every = lowered(PbLlmLower, weight, moment, low=0, **plain)
    _, gptq = lowered(GptqLower, weight, moment, bits=8, group=96)
    assert torch.equal(every, gptq)
    _, none = lowered(PbLlmLower, weight, torch.eye(96), low=1, **plain)
    mean = weight.mean(1, keepdim=True)
    scale = (weight - mean).abs().mean(1, keepdim=True)
    expected = mean + scale * torch.where(weight >= mean, 1.0, -1.0)
    torch.testing.assert_close(none, expected, rtol=2e-3, atol=1e-5)


def test_errors_on_gaussian_weights() -> None:
    """The tenth of largest size is nearly exact; of the others, |w| varies about its mean."""
    weight, moment = noise(256, 640), torch.eye(640)
    normal = NormalDist()
    edge = normal.inv_cdf(0.95)
    square = 0.9 - 2 * edge * normal.pdf(edge)
    size = 2 * (normal.pdf(0) - normal.pdf(edge))
    expected = square - size**2 / 0.9
    found = {}
    for name, options in (("masked", {"rounds": 0, "sweeps": 0}), ("published", PUBLISHED)):
        _, dense = lowered(PbLlmLower, weight, moment, **options)
        found[name] = float((weight - dense).square().sum() / weight.square().sum())
    assert found["masked"] == pytest.approx(expected, rel=0.03)
    assert found["masked"] < found["published"] < 1.1 * found["masked"]


@pytest.mark.parametrize("seed", range(2))
def test_our_loop_is_never_worse(seed: int) -> None:
    weight, moment = noise(12, COLUMNS, seed), correlated_moment(COLUMNS, seed)
    costs = []
    for options in (PUBLISHED, {"rounds": 0, "sweeps": 0}, {"rounds": 0}, {}):
        unit, dense = lowered(PbLlmLower, weight, moment, **options)
        costs.append(cost(unit, weight, dense))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.85 * costs[0]


@pytest.mark.parametrize("shape", [(1, 32), (5, 1), (2, 576)])
@pytest.mark.parametrize("low", [0.0, 0.9, 1.0])
def test_odd_shapes_and_rows_of_zeros(shape: tuple[int, int], low: float) -> None:
    weight, moment = noise(*shape), correlated_moment(shape[1])
    weight[-1] = 0
    _, dense = lowered(PbLlmLower, weight, moment, low=low)
    assert (weight - dense).norm() <= 0.8 * weight.norm()
    assert not dense[-1].any()


@pytest.mark.parametrize(
    "options",
    [
        {"low": 1.1},
        {"group": -1},
        {"feedback": False, "rounds": 1},
        {"low": 0, "mean": "zeroed"},
        {"low": 1, "span": "all"},
        {"low": 1, "metric": "magnitude"},
    ],
)
def test_options_out_of_range_or_without_effect_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PbLlmLower.model_validate(options)
