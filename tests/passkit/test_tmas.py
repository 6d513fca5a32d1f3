"""States of the model's own trajectories: really visited, in their shares, counted, refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.errors import InvalidCalibration, QdcError
from qdc.frontend.opening import open_model
from qdc.ir.calibration_use import SampledStates
from qdc.ir.facts import ModelFacts
from qdc.passes.calibrate_mcs import CalibrateMcs
from qdc.passkit.geometry import behind_prefix
from qdc.passkit.predictor import Predictor
from qdc.passkit.tmas import SHARES, Aims, Tmas, Way, quotas, sampled
from qdc.passkit.trajectory import Sampler
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.fill import fill
from qdc.runtime.decoding.results import Snapshot
from qdc.runtime.load import load_checkpoint
from qdc.streaming.workspace import Workspace
from tests.support.checkpoints import MASK, write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, write_family
from tests.support.outlooks import forecast_tiny
from tests.support.units import whole_model

ROWS, LENGTH = 6, 20
EVEN = "low-confidence"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tmas") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, vocab=64, dtype=torch.float32)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose logits are shifted, with a sampler of its own."""
    folder = tmp_path_factory.mktemp("tmas") / "dream"
    return write_family(folder, CASES["dream"], dtype=torch.float32)


def take(
    folder: Path, tmas: Tmas, prefix: float = 0.25
) -> tuple[Tensor, Tensor, Tensor, SampledStates]:
    """Clean text, and the states that are taken of its trajectories."""
    checkpoint, program = open_model(folder)
    workspace = Workspace(program, checkpoint, torch.device("cpu"), calibration=None)
    unit = whole_model(CalibrateMcs(geometry="tmas"), workspace)
    clean = torch.randint(2, 64, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    places = behind_prefix(ROWS, LENGTH, prefix)
    (tokens, masked), use = sampled(Predictor.of(unit), clean, places, tmas, batch=4)
    return clean, tokens, masked, use


def visited(
    logits: Any, facts: ModelFacts, clean: Tensor, row: int, tmas: Tmas, prefix: float
) -> list[Tensor]:
    """Every state of a row that the decoder hands to a model that is held whole."""
    gap = behind_prefix(1, LENGTH, prefix)[0]
    options = tmas.sampler.options(facts).model_copy(
        update={"length": int(gap.sum()), "block": tmas.sampler.block}
    )
    states = [clean[row].masked_fill(gap, MASK)]

    def watch(state: Snapshot) -> None:
        states.append(state.tokens[0].clone())

    seed = (tmas.sampler.seed << 20) + row
    held = DecodeFacts.of(facts)
    fill(logits, [clean[row].tolist()], [gap.tolist()], options, held, watch, [seed])
    return [state for state in states if bool((state == MASK).any())]


@pytest.mark.parametrize(
    ("folder", "sampler", "way", "each", "prefix"),
    [
        ("model", Sampler(), "ratio", 1, 0.25),
        ("shifted", Sampler(), "ratio", 2, 0.25),
        ("model", Sampler(steps=15, block=5), "step", 3, 0.25),
        ("model", Sampler("low-confidence{temperature=0.7}", seed=3), "ratio", 2, 0.0),
        ("model", Sampler("threshold{threshold=0.05}"), "ratio", 2, 0.5),
        ("shifted", Sampler("origin", steps=6), "step", 2, 0.25),
    ],
    ids=["own", "own-shifted", "blocks", "drawn", "threshold", "origin"],
)
def test_every_state_is_one_that_the_sampler_visits(
    request: pytest.FixtureRequest,
    folder: str,
    sampler: Sampler,
    way: Way,
    each: int,
    prefix: float,
) -> None:
    model = request.getfixturevalue(folder)
    tmas = Tmas(sampler, way=way, per_trajectory=each)
    clean, tokens, masked, use = take(model, tmas, prefix)
    assert torch.equal(tokens == MASK, masked)
    assert masked.any(1).all(), "a state without an open place is never handed to the model"
    logits = load_checkpoint(model, "cpu", torch.float32)
    facts = open_model(model)[1].graph.model
    for row in range(ROWS):
        states = visited(logits, facts, clean, row, tmas, prefix)
        for state in tokens[row * each : (row + 1) * each]:
            assert any(torch.equal(state, other) for other in states)
    assert sum(use.drawn) == sum(use.asked) == ROWS * each
    assert use.trajectories == ROWS


def test_states_lie_in_the_stretches_that_were_asked_for(model: Path) -> None:
    tmas = Tmas(Sampler(EVEN, steps=15), per_trajectory=4)
    _, _, masked, use = take(model, tmas)
    done = 1 - masked.sum(1) / 15
    counts = torch.bincount((4 * done + 1e-9).long(), minlength=4).tolist()
    assert tuple(counts) == use.drawn == use.asked == quotas(24, SHARES) == (7, 5, 5, 7)
    assert (use.strayed, use.repeated) == (0, 0)
    assert use.warnings == ()


def test_what_a_trajectory_leaves_out_is_counted(model: Path) -> None:
    """Two steps visit the start and the middle alone."""
    *_, use = take(model, Tmas(Sampler(EVEN, steps=2), per_trajectory=4))
    assert sum(use.drawn) == 24
    assert use.drawn[1] == use.drawn[3] == 0
    assert use.strayed == use.asked[1] + use.asked[3] == 12
    assert use.repeated == 12
    assert "12 of 24 states lie in another stretch" in use.warnings[0]
    assert "repeat another" in use.warnings[1]


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(0, 2000),
    parts=st.lists(st.integers(0, 100), min_size=2, max_size=9).filter(lambda p: sum(p) > 0),
)
def test_shares_are_kept_within_rounding(count: int, parts: list[int]) -> None:
    shares = [part / sum(parts) for part in parts]
    found = quotas(count, shares)
    assert sum(found) == count
    assert all(abs(n - count * share) < 1 + 1e-6 for n, share in zip(found, shares, strict=True))
    aims = Aims.of(count, shares)
    assert torch.bincount(aims.stretch, minlength=len(parts)).tolist() == list(found)
    assert torch.equal((aims.way * len(parts)).long(), aims.stretch)


def test_rows_without_a_place_are_refused(model: Path) -> None:
    with pytest.raises(InvalidCalibration, match="6 of 6 samples leave the sampler nothing"):
        take(model, Tmas(Sampler()), prefix=1.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("geometry=tmas clean-copy=true", "does not read clean-copy"),
        ("shares=0.5,0.5", "shares is for tmas: write which geometry beside it"),
        ("geometry=tmas shares=0.5,0.6", "shares add up to 1.1"),
        ("geometry=tmas shares=1.5,-0.5", "shares"),
        ("geometry=tmas strategy=apd", "calibration has none"),
        ("geometry=tmas strategy=surest", "no strategy is called 'surest'"),
        ('geometry=tmas strategy="low-confidence{temperature=-1}"', "temperature"),
    ],
)
def test_what_cannot_be_sampled_is_refused(model: Path, options: str, expected: str) -> None:
    with pytest.raises(QdcError) as caught:
        forecast_tiny(model, f"calibrate-mcs{{{options}}},sensitivity,rtn-lower,pack")
    assert expected in str(caught.value)


def test_a_compile_says_what_it_has_drawn_and_a_plan_what_it_will(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", d_model=32, mlp_hidden_size=48)
    passes = "stages(calibrate-mcs{geometry=tmas steps=12},rtn-lower),pack"
    report = compile_tiny(model, tmp_path / "out", passes, samples=10, length=16)
    (use,) = report.calibration_states
    assert use.drawn == use.asked == (3, 2, 2, 3)
    outlook = forecast_tiny(model, passes, samples=10, length=16)
    (foreseen,) = outlook.calibration_states
    assert (foreseen.asked, foreseen.strategy) == (use.asked, use.strategy)
    assert outlook.forwards == pytest.approx(report.layer_forwards, rel=0.02)
