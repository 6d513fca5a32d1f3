"""Models whose attention goes by blocks are calibrated block by block, unless told otherwise."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import qdc
from qdc.cli import run
from qdc.ir.annotations import Moment
from qdc.pipeline.registry import standard_registry
from qdc.planning.configure import configure
from qdc.planning.options import PlanOptions
from qdc.runtime.load import load_checkpoint
from qdc.streaming.unit import Unit
from tests.support.compiles import compile_tiny, run_passes, spying
from tests.support.families import CASES, EMBEDDED, write_family

PASSES = "stages(calibrate-mcs,rtn-lower),pack"


@pytest.fixture(scope="module")
def sdar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("blocks") / "sdar", CASES["sdar"])


@pytest.mark.parametrize(
    ("passes", "geometry", "expected"),
    [
        (PASSES, None, "geometry=block-diffusion"),
        (PASSES, "mcs", "geometry=mcs"),
    ],
)
def test_what_is_not_given_goes_by_blocks(
    sdar: Path, tmp_path: Path, passes: str, geometry: str | None, expected: str
) -> None:
    report = compile_tiny(sdar, tmp_path / "out", passes, geometry=geometry)
    assert expected in report.pipeline
    assert report.pipeline.count("geometry") == 1
    again = qdc.compile(sdar, report.pipeline, out=tmp_path / "again", write_report=False)
    assert again.artifact_sha256 == report.artifact_sha256


@pytest.mark.parametrize(
    ("family", "leaf"), [("sdar", "self_attn.q_proj"), ("llada2", "attention.query")]
)
def test_moments_have_no_token_of_blocks_behind_the_one_in_work(
    family: str, leaf: str, tmp_path: Path
) -> None:
    """A sampler never has them in the model, and no token that it has sees them."""
    model = write_family(tmp_path / "model", CASES[family], dtype=torch.float32)
    path, block = f"model.layers.0.{leaf}", CASES[family].block
    found: list[tuple[Moment, Tensor, Tensor, int]] = []
    experts: list[Moment] = []

    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            note = unit.graph.require(node.name, Moment)
            if node.path == path:
                (stream,) = unit.open_streams().values()
                found.append((note, unit.get(note.tensor).clone(), stream.tokens, unit.model.mask))
            elif ".experts." in node.path:
                experts.append(note)

    options = {"samples": 6, "length": 20, "stop_after": "spy"}
    run_passes(model, tmp_path / "run", spying(look), "calibrate-mcs,spy", **options)
    ((note, moment, tokens, mask),) = found
    assert block is not None
    number = torch.arange(20) // block
    first = [int(number[row == mask].min()) for row in tokens]
    kept = number <= torch.tensor(first)[:, None]
    assert 0 < (~kept).sum() == note.left_out
    assert note.tokens == kept.sum()
    assert note.masked == pytest.approx((tokens == mask)[kept].double().mean())
    assert f"{note.tokens} tokens and {note.left_out} left out" in note.text()
    seen: list[Tensor] = []
    module = load_checkpoint(model, "cpu", torch.float32)
    module.get_submodule(path).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    module(tokens)
    inputs = seen[0][kept]
    torch.testing.assert_close(moment, inputs.T @ inputs / len(inputs), rtol=1e-4, atol=1e-5)
    assert all(each.tokens <= note.tokens for each in experts)
    assert bool(experts) == (family == "llada2")


def test_other_models_are_calibrated_as_before() -> None:
    options = PlanOptions(model_dir=EMBEDDED, passes=PASSES)
    plan, _ = configure(options, standard_registry())
    assert "geometry" not in str(plan)


def test_eval_says_that_it_reads_block_by_block(
    sdar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--text", EMBEDDED / "heldout.jsonl", "--windows", 2, "--length", 24]
    given += ["--ratios", 0.5, "--seeds", 1]
    assert run(["eval", str(sdar), *map(str, given)]) == 0
    own = capsys.readouterr().out
    assert "each of 4 tokens is read behind the clean text before it" in own
    assert run(["eval", str(sdar), *map(str, given), "--hide", "all"]) == 0
    everywhere = capsys.readouterr().out
    assert "behind the clean text" not in everywhere
    assert own.split("bound")[0] != everywhere.split("bound")[0]
    assert run(["eval", str(EMBEDDED), *map(str, given), "--hide", "all"]) == 1
    assert "--hide is about attention blocks" in capsys.readouterr().err
