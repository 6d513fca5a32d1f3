"""Weights by certainty: of the original model, in every sum; all ones are no weights at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.ir.annotations import Moment
from qdc.ir.cross import CrossMoment
from qdc.numerics.asymmetry import CrossMomentAccumulator
from qdc.numerics.moment import MomentAccumulator
from qdc.passkit.certainty import Certainty
from qdc.runtime.load import load_checkpoint
from qdc.streaming.unit import Unit
from tests.support.checkpoints import MASK, write_checkpoint
from tests.support.compiles import compile_tiny, run_passes, spying
from tests.support.outlooks import forecast_tiny

OPTIONS = "samples=4 length=16 seed=7 batch=3"
Look = Callable[[Unit], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certainty") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, dtype=torch.float32)


def look_into(model: Path, folder: Path, options: str, look: Look, cross: bool = False) -> None:
    """Look at every stage behind its calibration."""
    name = "calibrate-cross" if cross else "calibrate-mcs"
    passes = f"stages({name}{{{OPTIONS} {options}}},spy,rtn-lower)"
    registry = spying(lambda label, unit: look(unit))
    run_passes(model, folder, registry, passes, stop_after="rtn-lower")


def moments(model: Path, folder: Path, options: str, cross: bool = False) -> dict[str, Tensor]:
    """Moments, and cross moments, by layer."""
    found: dict[str, Tensor] = {}

    def look(unit: Unit) -> None:
        for node in unit.layers():
            found[node.name] = unit.get(unit.graph.require(node.name, Moment).tensor).clone()
            note = unit.graph.get(node.name, CrossMoment)
            if note is not None:
                found[f"{node.name} cross"] = unit.get(note.tensor).clone()

    look_into(model, folder, options, look, cross)
    return found


def test_weights_are_those_of_the_papers() -> None:
    sure = torch.tensor([0.0, 0.25, 1.0] * 2).double()
    masked = torch.tensor([True] * 3 + [False] * 3)
    paper = Certainty("certainty").weights(sure, masked)
    torch.testing.assert_close(paper, torch.tensor([1, 1.5, 2, 0.7, 1.2, 1.7]).square())
    linear = Certainty("certainty-linear").weights(sure, masked)
    torch.testing.assert_close(linear, torch.tensor([0.5, 0.75, 1.5, 0.5, 0.5, 0.5]))
    own = Certainty("certainty", base=(2, 1), exponent=1).weights(sure, masked)
    torch.testing.assert_close(own, torch.tensor([2, 2.5, 3, 1, 1.5, 2]))


@pytest.mark.parametrize("cross", [False, True], ids=["mcs", "cross"])
def test_all_ones_give_the_plain_moment_bit_for_bit(
    model: Path, tmp_path: Path, cross: bool
) -> None:
    plain, ones, other = (
        moments(model, tmp_path, options, cross)
        for options in (
            "",
            "token-weights=certainty certainty-exponent=0",
            "token-weights=certainty",
        )
    )
    assert plain.keys() == ones.keys() == other.keys()
    for name, value in plain.items():
        assert torch.equal(value, ones[name]), name
    assert not torch.equal(plain["blocks.0.q_proj"], other["blocks.0.q_proj"])


def test_ones_as_weights_change_no_bit_of_the_sums() -> None:
    values = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(0))
    sums = [MomentAccumulator(12), MomentAccumulator(12)]
    crosses = [CrossMomentAccumulator(12), CrossMomentAccumulator(12)]
    for weights, total, cross in zip((None, torch.ones(3, 7)), sums, crosses, strict=True):
        total.add(values, weights)
        cross.add(values, values.flip(0), weights)
    assert torch.equal(*(total.value() for total in sums))
    assert torch.equal(*(cross.value() for cross in crosses))


@pytest.mark.parametrize("geometry", ["mcs", "tmas", "clean"])
def test_confidence_is_that_of_the_original_model(
    model: Path, tmp_path: Path, geometry: str
) -> None:
    """And the sum is that of w x x^T, in the quantized stream too."""
    logits = load_checkpoint(model, "cpu", torch.float32)
    seen: list[str] = []

    def look(unit: Unit) -> None:
        stream = unit.open_streams()[0, False]
        weights, tokens = stream.token_weights, stream.tokens
        assert weights is not None
        if not seen:
            chances = logits(tokens).double()
            chances[..., MASK] = -torch.inf
            sure = chances.softmax(-1).amax(-1)
            base = torch.where(tokens == MASK, 1.0, 0.7)
            torch.testing.assert_close(weights, (base + sure.sqrt()).square().float())
        ((stage, layers),) = unit.layers_by_stage()
        total: Any = 0
        for value, part in zip(stream.values(stage), stream.rows(weights), strict=True):
            total = total + torch.einsum("bt,btc,btd->cd", part, value, value).double()
        note = unit.graph.require(layers[0].name, Moment)
        torch.testing.assert_close(
            unit.get(note.tensor), (total / weights.double().sum()).float(), rtol=1e-4, atol=1e-6
        )
        assert note.text().endswith("   certainty")
        seen.append(stage.value)

    look_into(model, tmp_path, f"geometry={geometry} token-weights=certainty", look)
    assert len(seen) == 8


def test_the_cross_moment_is_weighed_alike(model: Path, tmp_path: Path) -> None:
    seen: list[float] = []

    def look(unit: Unit) -> None:
        streams = unit.open_streams()
        now, before = streams[0, False], streams[0, True]
        weights = now.token_weights
        assert weights is not None
        assert before.token_weights is not None
        assert torch.equal(weights, before.token_weights)
        ((stage, layers),) = unit.layers_by_stage()
        total: Any = 0
        values = now.values(stage), before.values(stage)
        for x, x0, part in zip(*values, now.rows(weights), strict=True):
            total = total + torch.einsum("bt,btc,btd->cd", part, x0 - x, x).double()
        note = unit.graph.require(layers[0].name, CrossMoment)
        found = unit.get(note.tensor)
        torch.testing.assert_close(
            found, (total / weights.double().sum()).float(), rtol=1e-3, atol=1e-5
        )
        seen.append(float(found.abs().max()))

    look_into(model, tmp_path, "token-weights=certainty-linear", look, cross=True)
    assert max(seen) > 1e-3


def test_a_compile_says_what_tokens_weigh_and_a_plan_counts_the_sweep(
    model: Path, tmp_path: Path
) -> None:
    passes = "stages(calibrate-mcs{token-weights=certainty},rtn-lower),pack"
    report = compile_tiny(model, tmp_path / "out", passes, pack="pad", length=64)
    (use,) = report.calibration_certainty
    assert use.tokens == 4 * 64 - report.calibration_text[0].padding
    assert use.masked is not None
    assert 0 < use.masked < 1
    assert 0.49 <= use.least < use.most <= 4
    outlook = forecast_tiny(model, passes, pack="pad", length=64)
    assert outlook.forwards == pytest.approx(report.layer_forwards)
    assert report.layer_forwards > 1.9


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("certainty-base=1,1", "token-weights equal does not read certainty-base"),
        ("certainty-exponent=1", "token-weights equal does not read certainty-exponent"),
        ("token-weights=certainty certainty-base=0,1", "two numbers above 0"),
        ("token-weights=certainty certainty-base=1", "certainty-base"),
        ("token-weights=certainty-linear geometry=clean", "geometry clean masks none"),
        ("token-weights=sure", "token-weights"),
    ],
)
def test_what_would_do_nothing_is_refused(model: Path, options: str, expected: str) -> None:
    with pytest.raises(QdcError) as caught:
        forecast_tiny(model, f"calibrate-mcs{{{options}}},sensitivity,rtn-lower,pack")
    assert expected in str(caught.value)
