"""Commands on a model of canvases: what is written, calibrated, measured and refused."""

import json
from pathlib import Path

import pytest

from qdc.cli import run
from qdc.ir.annotations import Moment
from qdc.streaming.unit import Unit
from tests.cli.conftest import Command
from tests.support.canvas import CANVAS, write_canvas
from tests.support.checkpoints import EMBEDDED
from tests.support.compiles import run_passes, spying

HELD_OUT = EMBEDDED / "heldout.jsonl"
WINDOWS = ("--windows", 2, "--length", 20, "--seeds", 1, "--ratios", "0.25,1")
PROMPT = "def read(path):"
OWN = "renoise{denoising-steps=2}"


@pytest.fixture(scope="module")
def canvas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_canvas(tmp_path_factory.mktemp("canvas") / "model")


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_generate_writes_by_the_familys_own_strategy(
    canvas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(*given: object) -> dict[str, object]:
        write = ("generate", canvas, PROMPT, "--length", 10, "--strategy", OWN, "--json")
        found: dict[str, object] = json.loads(told(capsys, *write, *given))
        return found

    first, again, other = written(), written(), written("--seed", 1, "--cache", "none")
    assert first["strategy"] == OWN
    assert (first["steps"], first["forwards"], first["written"]) == (4, 6, 10)
    assert first["cache_bytes"]
    assert first["tokens"] == again["tokens"] != other["tokens"]
    assert (other["forwards"], other["cache_bytes"]) == (4, 0)


def test_what_does_not_go_with_a_canvas_is_refused(canvas: Path, refused: Command) -> None:
    write = ("generate", canvas, PROMPT, "--length", 8)
    assert "the model has no mask token" in refused(*write, "--strategy", "threshold")
    assert "steps has no effect on renoise" in refused(*write, "--steps", 3)
    assert "fills no gaps" in refused("run", canvas, "for i ___ x")
    masks = ("generate", EMBEDDED, PROMPT, "--length", 8, "--strategy", "renoise")
    assert "the model was trained to fill masks" in refused(*masks)
    measure = ("eval", canvas, "--text", HELD_OUT, *WINDOWS)
    assert "the loss at random tokens of a canvas" in refused(*measure, "--hide", "all")
    inspect = ("inspect-calibration", canvas, "--samples", 2, "--length", 12)
    assert "is trained on random tokens" in refused(*inspect, "--geometry", "mcs")
    assert "geometry mcs draws masks" in refused(
        "compile", canvas, "-o", canvas.with_name("out"), "--geometry", "mcs"
    )


def test_eval_measures_at_random_tokens_of_the_canvas(
    canvas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = told(capsys, "eval", canvas, "--text", HELD_OUT, *WINDOWS, "--against", canvas)
    assert "noise ratio" in out
    assert f"that share of the last {CANVAS} tokens of a window" in " ".join(out.split())
    assert "bound" not in out.replace("bounds", "")
    assert "mask ratio" not in out
    data = json.loads(told(capsys, "eval", canvas, "--text", HELD_OUT, *WINDOWS, "--json"))
    assert (data["bound"], data["canvas"]) == (None, CANVAS)
    some, all_ = data["ratios"]
    assert some["tokens"] < all_["tokens"] == 2 * CANVAS


def test_inspect_calibration_speaks_of_noise(
    canvas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--samples", 2, "--length", 12, "--ratios", 0.9, "--top", 2)
    out = told(capsys, "inspect-calibration", canvas, *given)
    assert "noise moves what the layers read" in out
    assert "noise moment" in " ".join(out.split())
    assert "against the same windows without noise" in out
    data = json.loads(told(capsys, "inspect-calibration", canvas, *given, "--json"))
    assert data["geometry"] == "uniform-noise"
    noise = [row["masked_tokens"] for row in data["stages"] if row["ratio"] == 0.9]
    assert 0 < max(noise) <= 2 * CANVAS


def test_calibration_takes_noise_by_itself_and_counts_it(canvas: Path, tmp_path: Path) -> None:
    found: dict[str, Moment] = {}

    def look(label: str, unit: Unit) -> None:
        found.update({node.name: unit.graph.require(node.name, Moment) for node in unit.layers()})

    run_passes(
        canvas, tmp_path, spying(look), "calibrate-mcs{samples=4 length=16},spy", stop_after="spy"
    )
    note = next(note for name, note in found.items() if "q_proj" in name)
    assert (note.samples, note.tokens, note.geometry) == (4, 64, "uniform-noise")
    # Half of each sample is canvas, of which a quarter, a half, three quarters and all are noise.
    assert 0.15 < note.masked < 0.45
    assert f"{note.masked:.0%} noise   uniform-noise" in note.text()
