"""calibrate-mcs: the moment is that of the masked samples, shared by a stage."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdc.errors import InvalidCalibration, QdcError
from qdc.ir.annotations import Moment
from qdc.passes.calibrate_mcs import CalibrateMcs
from qdc.streaming.unit import Unit
from qdc.text.tokenizer import load_tokenizer
from tests.support.checkpoints import MASK, write_checkpoint
from tests.support.compiles import run_passes, spying
from tests.support.texts import TEXT
from tests.support.units import make_unit, noise

OPTIONS = "samples=3 length=12 seed=7"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, dtype=torch.float32)


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
    "options",
    ["samples=3 length=12 seed=8", "samples=4 length=12 seed=7", OPTIONS + " prefix=0.25"],
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
    with pytest.raises(InvalidCalibration, match="of 5 tokens in all, need at least the 12"):
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
        seen.append(unit.open_streams()[0, False].tokens)

    run_passes(
        model,
        tmp_path,
        spying(look),
        "calibrate-mcs{samples=8 length=12 prefix=0.25},spy",
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


STATES = "samples=6 length=16 seed=1"


def states(model: Path, folder: Path, text: Path, options: str) -> Tensor:
    """The masked share of each row that the pass calibrates on."""
    seen: list[Tensor] = []

    def look(label: str, unit: Unit) -> None:
        seen.append(unit.open_streams()[0, False].tokens == MASK)

    passes = f"calibrate-mcs{{{options}}},spy"
    run_passes(model, folder, spying(look), passes, stop_after="spy", calibration=text)
    return seen[0]


@pytest.mark.parametrize(
    ("options", "prefix", "shares"),
    [
        ("geometry=clean", 16, [0] * 6),
        ("geometry=rollout steps=4", 4, [1 - step / 4 for step in (3, 2, 2, 1, 0, 0)]),
        ("geometry=rollout steps=4 block-length=4", 4, [1 - s / 4 for s in (3, 2, 2, 1, 0, 0)]),
        ("clean-copy=true", 4, [0, None, None, None, None, 1]),
        ("timesteps=2", 4, [None, 1] * 6),
        ("timesteps=3 clean-copy=true", 4, [0, None, 1] * 6),
        ("geometry=block-diffusion block-length=3", 4, [None] * 5 + [1]),
        ("geometry=uniform timesteps=2", 0, [None] * 12),
    ],
)
def test_geometries(
    options: str,
    prefix: int,
    shares: list[float | None],
    model: Path,
    text: Path,
    tmp_path: Path,
) -> None:
    """What is masked where the geometry leaves no choice; the prefix never is."""
    kept = f" prefix={prefix / 16}" if 0 < prefix < 16 else ""
    masked = states(model, tmp_path, text, f"{STATES} {options}{kept}")
    assert len(masked) == len(shares)
    assert not masked[:, :prefix].any()
    for row, share in zip(masked, shares, strict=True):
        if share is not None:
            assert row[prefix:].double().mean().nan_to_num().item() == pytest.approx(share)


def test_uniform_masks_the_whole_window(model: Path, text: Path, tmp_path: Path) -> None:
    masked = states(model, tmp_path, text, "samples=32 length=16 geometry=uniform")
    assert masked[:, :4].any()
    shares = masked.double().mean(1)
    assert shares[:16].mean() < 0.5 < shares[16:].mean()


def test_the_note_names_geometry_and_weight(model: Path, text: Path, tmp_path: Path) -> None:
    usual, _ = moments(model, tmp_path, text, OPTIONS)["blocks.0.q_proj"]
    assert "mcs" not in usual.text()
    assert not {"geometry", "masked_weight"} & set(usual.model_dump())
    note, _ = moments(
        model, tmp_path, text, OPTIONS + " geometry=uniform masked-weight=3 timesteps=2"
    )["blocks.0.q_proj"]
    assert (note.geometry, note.masked_weight, note.samples, note.tokens) == ("uniform", 3, 3, 72)
    assert note.text().endswith("masked of weight 3   uniform")
    assert Moment.model_validate(note.model_dump()) == note


def test_masked_positions_weigh_more(model: Path, text: Path, tmp_path: Path) -> None:
    """At the first stage a masked position always reads the same: the moment moves towards it."""
    plain = moments(model, tmp_path, text, OPTIONS)["blocks.0.q_proj"]
    heavy = moments(model, tmp_path, text, OPTIONS + " masked-weight=5")["blocks.0.q_proj"]
    light = moments(model, tmp_path, text, OPTIONS + " masked-weight=0.2")["blocks.0.q_proj"]
    share = plain[0].masked
    # all three are mixtures of the same two moments
    of = {w: w * share / (w * share + 1 - share) for w in (0.2, 1.0, 5.0)}
    slope = (heavy[1] - light[1]) / (of[5.0] - of[0.2])
    expected = light[1] + slope * (of[1.0] - of[0.2])
    torch.testing.assert_close(plain[1], expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(heavy[1], plain[1])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("geometry=clean masked-weight=2", "geometry clean does not read masked-weight"),
        ("geometry=uniform prefix=0.5", "geometry uniform does not read prefix"),
        ("geometry=uniform clean-copy=true", "does not read clean-copy"),
        ("steps=4", "steps is for rollout, tmas: write which geometry beside it"),
        ("block-length=4", "block-length is for block-diffusion, rollout, tmas"),
        ("geometry=causal", "geometry: Input should be 'mcs'"),
        ("masked-weight=0", "masked-weight: Input should be greater than 0"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    options: str, expected: str, model: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(QdcError, match=expected):
        moments(model, tmp_path, text, options)


def test_prompts_are_visible_and_so_is_a_prefix(model: Path, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text("\n".join(f'{{"q": "say {n}", "a": "{n} " }}' for n in range(40)))
    seen: list[Tensor] = []

    def look(label: str, unit: Unit) -> None:
        seen.append(unit.open_streams()[0, False].tokens)

    def run(options: str) -> None:
        run_passes(
            model, tmp_path, spying(look), f"calibrate-mcs{{{options}}},spy", stop_after="spy",
            calibration=chats, chat_fields="q,a",
        )  # fmt: skip

    run("samples=4 length=24 timesteps=1")
    decode = load_tokenizer(model).decode
    for row in seen[0].tolist():
        assert str(decode(row)).startswith("say ")
        assert MASK in row
        kept = str(decode([token for token in row if token != MASK]))
        assert not set(kept) - set("say \n0123456789"), kept
    run("samples=4 length=24 timesteps=1 prefix=0.5")
    assert not (seen[-1][:, :12] == MASK).any()
    assert torch.equal(seen[-1][:, 12:], seen[0][:, 12:])
