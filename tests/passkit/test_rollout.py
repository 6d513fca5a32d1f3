"""Rollouts: states of the sampler that ``qdc run`` uses, streamed, each sample until its time."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdc.checkpoint.folder import Checkpoint
from qdc.evaluation.infill import infill
from qdc.frontend.opening import open_model
from qdc.passes.calibrate_mcs import CalibrateMcs
from qdc.passkit.geometry import behind_prefix
from qdc.passkit.rollout import rollout
from qdc.runtime.load import load_checkpoint
from qdc.streaming.unit import Unit
from qdc.streaming.workspace import Workspace
from tests.support.checkpoints import MASK, write_checkpoint
from tests.support.families import CASES, write_family
from tests.support.units import whole_model

SAMPLES, LENGTH, STEPS = 4, 20, 5


@pytest.fixture(scope="module", params=["llada", "dream"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and one whose logits are shifted."""
    folder = tmp_path_factory.mktemp("rollout") / "model"
    if request.param == "dream":
        return write_family(folder, CASES["dream"], dtype=torch.float32)
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, vocab=64, dtype=torch.float32)


@pytest.fixture
def workspace(model: Path) -> Workspace:
    checkpoint, program = open_model(model)
    return Workspace(program, checkpoint, torch.device("cpu"), calibration=None)


@pytest.fixture
def clean() -> Tensor:
    return torch.randint(2, 64, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))


def unit_of(workspace: Workspace) -> Unit:
    return whole_model(CalibrateMcs(geometry="rollout"), workspace)


def places() -> Tensor:
    return behind_prefix(SAMPLES, LENGTH, 0.3)


def run(
    workspace: Workspace, clean: Tensor, times: list[float], block: int | None = None
) -> tuple[Tensor, Tensor]:
    return rollout(unit_of(workspace), clean, places(), torch.tensor(times), STEPS, block, batch=3)


def test_a_whole_rollout_is_what_the_sampler_writes(
    model: Path, workspace: Workspace, clean: Tensor
) -> None:
    tokens, masked = run(workspace, clean, [0.0] * SAMPLES)
    assert not masked.any()
    logits = load_checkpoint(model, "cpu", torch.float32)
    for row in range(SAMPLES):
        some = slice(row, row + 1)
        expected = infill(logits, clean[some], places()[some], MASK, STEPS)
        assert torch.equal(tokens[some], expected)


def test_each_sample_stops_at_its_time(workspace: Workspace, clean: Tensor) -> None:
    tokens, masked = run(workspace, clean, [1.0, 0.6, 0.2, 0.0])
    counts = masked.sum(1).tolist()
    assert counts == [14, 14 - 3 - 3, 14 - 3 - 3 - 3 - 3, 0]
    assert torch.equal(tokens == MASK, masked)
    assert torch.equal(tokens[:, :6], clean[:, :6]), "the prefix stays"
    whole, _ = run(workspace, clean, [0.0] * SAMPLES)
    assert torch.equal(tokens[~masked], whole[~masked]), "a state lies on the way to the end"


def test_blocks_are_filled_from_left_to_right(workspace: Workspace, clean: Tensor) -> None:
    for time in (0.8, 0.6, 0.4, 0.2):
        _, masked = run(workspace, clean, [time] * SAMPLES, block=4)
        inside = masked[:, 6:]
        blocks = [part.float().mean(1) for part in torch.split(inside, 4, dim=1)]
        for before, after in pairwise(blocks):
            assert ((before == 0) | (after == 1)).all()


def test_the_batch_does_not_matter(workspace: Workspace, clean: Tensor) -> None:
    times = torch.tensor([0.2, 0.4, 0.6, 0.8])
    found = [
        rollout(unit_of(workspace), clean, places(), times, STEPS, None, batch)[0]
        for batch in (1, 4)
    ]
    assert torch.equal(*found)


def test_the_model_is_streamed(
    workspace: Workspace, clean: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tensor is read once a step, and the workspace keeps none."""
    read: list[str] = []
    usual = Checkpoint.tensor

    def counted(self: Checkpoint, name: str) -> Tensor:
        read.append(name)
        return usual(self, name)

    monkeypatch.setattr(Checkpoint, "tensor", counted)
    run(workspace, clean, [0.6] * SAMPLES)
    steps = 2
    assert set(read) == set(workspace.checkpoint.headers)
    linears = sum(1 for _ in workspace.program.graph.layers())
    names = [node.weight.name for node in workspace.program.graph.layers()]
    assert all(read.count(name) == steps for name in names)
    assert not workspace._loaded
    assert workspace.linear_calls == steps * SAMPLES * linears
