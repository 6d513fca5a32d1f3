"""calibrate-mcs: the moment is that of the masked samples, shared by a stage."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdc.errors import InvalidCalibration, QdcError
from qdc.ir.annotations import Moment
from qdc.passes.calibrate_mcs import CalibrateMcs
from qdc.pipeline.unit import Unit
from tests.support.checkpoints import MASK, write_checkpoint
from tests.support.compiles import run_passes, spying
from tests.support.units import make_unit, noise

TEXT = "a deterministic walk through the standard library, one word after another. " * 40
OPTIONS = "samples=3 length=12 seed=7"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, dtype=torch.float32)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def moments(
    model: Path, folder: Path, text: Path, options: str
) -> dict[str, tuple[Moment, Tensor]]:
    found: dict[str, tuple[Moment, Tensor]] = {}

    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            note = unit.graph.require(node.name, Moment)
            found[node.name] = note, unit.get(note.tensor).clone()

    passes = f"calibrate-mcs{{{options}}},spy"
    run_passes(model, folder, spying(look), passes, stop_after="spy", calibration=text)
    return found


def test_layers_of_a_stage_share_one_moment(model: Path, text: Path, tmp_path: Path) -> None:
    found = moments(model, tmp_path, text, OPTIONS)
    refs = {name.removeprefix("blocks.1."): note.tensor for name, (note, _) in found.items()}
    assert refs["q_proj"] == refs["k_proj"] == refs["v_proj"]
    assert refs["ff_proj"] == refs["up_proj"]
    assert len({ref.name for ref in refs.values() if "blocks.1" in ref.name}) == 4


def test_the_note_tells_samples_tokens_and_masked_share(
    model: Path, text: Path, tmp_path: Path
) -> None:
    note, moment = moments(model, tmp_path, text, OPTIONS)["blocks.0.ff_out"]
    assert (note.samples, note.tokens) == (3, 36)
    # a quarter is visible; of 9 places each sample masks about a third, two thirds, all
    assert 9 / 36 <= note.masked <= 27 / 36
    assert moment.shape == (48, 48)
    assert torch.equal(moment, moment.T)
    assert torch.linalg.eigvalsh(moment.double()).min() > -1e-6


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_batches_do_not_matter(batch: int, model: Path, text: Path, tmp_path: Path) -> None:
    one = moments(model, tmp_path, text, OPTIONS)
    other = moments(model, tmp_path, text, f"{OPTIONS} batch={batch}")
    for name, (note, moment) in one.items():
        torch.testing.assert_close(other[name][1], moment, rtol=1e-4, atol=1e-6)
        assert other[name][0].masked == note.masked


@pytest.mark.parametrize(
    "options", ["samples=3 length=12 seed=8", "samples=4 length=12 seed=7", OPTIONS + " prefix=0"]
)
def test_seed_samples_and_prefix_matter(
    options: str, model: Path, text: Path, tmp_path: Path
) -> None:
    one, other = (moments(model, tmp_path, text, o) for o in (OPTIONS, options))
    assert not torch.equal(one["blocks.0.q_proj"][1], other["blocks.0.q_proj"][1])


def test_the_longest_length_is_the_default(model: Path, tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text(TEXT * 4)
    found = moments(model, tmp_path, long, "samples=1")
    assert found["blocks.0.q_proj"][0].tokens == 64


def test_text_that_is_too_short_is_refused(model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(InvalidCalibration, match="the longest of"):
        moments(model, tmp_path, short, OPTIONS)


def test_samples_need_a_text() -> None:
    unit = make_unit(CalibrateMcs(), {"q": noise(2, 8)})
    with pytest.raises(InvalidCalibration, match="calibrate-mcs needs calibration text"):
        unit.step.run(unit)


def test_calibration_that_no_pass_reads_is_refused(model: Path, text: Path, tmp_path: Path) -> None:
    registry = spying(lambda label, unit: None)
    with pytest.raises(QdcError, match="no pass of the pipeline reads calibration text"):
        run_passes(model, tmp_path, registry, "rtn-lower,pack", calibration=text)


def test_samples_are_masked_behind_the_prefix(model: Path, text: Path, tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def look(label: str, unit: Unit) -> None:
        seen.append(unit.workspace._streams[0].tokens)

    run_passes(
        model,
        tmp_path,
        spying(look),
        "calibrate-mcs{samples=8 length=12},spy",
        stop_after="spy",
        calibration=text,
    )
    tokens = seen[0]
    assert tokens.shape == (8, 12)
    assert not (tokens[:, :3] == MASK).any()
    assert (tokens[-1, 3:] == MASK).all(), "the last sample stands at time one"
    shares = (tokens == MASK).double().mean(dim=1)
    assert shares[:4].mean() < shares[4:].mean()


def test_samples_longer_than_the_model_takes_are_refused_early(
    model: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidCalibration, match="asked for, the model takes 64"):
        moments(model, tmp_path, text, "samples=1 length=65")
