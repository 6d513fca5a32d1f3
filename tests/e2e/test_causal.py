"""Causal models without mask token: compiled from clean text, judged by their next token."""

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedModel

import qdc
import qdc.hf
from qdc.cli import run
from qdc.cli.evaluate import evaluate_command
from qdc.errors import QdcError, UnsupportedModel
from qdc.evaluation.held_out import held_out_windows
from qdc.evaluation.options import EvaluationOptions
from qdc.frontend.opening import open_model
from qdc.ir.graph import LayerGraph
from qdc.ir.parser import parse
from qdc.ir.printer import render
from qdc.passes.calibrate_mcs import CalibrateMcs
from qdc.passes.quantize_activations import QuantizeActivations
from qdc.pipeline.builder import build_plan
from qdc.pipeline.maskless import refuse_masks
from qdc.pipeline.plan import Plan
from qdc.pipeline.registry import standard_registry
from qdc.streaming.original import original_stream
from qdc.text.source import read_text
from qdc.text.tokenizer import encoder, load_tokenizer
from tests.support.checkpoints import EMBEDDED, TOKENIZER
from tests.support.natives import SIZES, rewrite, write_native

PIPELINE = "stages(calibrate-cross,sensitivity{damp=0.1},abmp-allocate,daq-lower),pack"
LENGTH = 32
PLAIN: dict[str, Any] = {name: size for name, size in SIZES.items() if name != "mask_token_id"}
CONFIGURATIONS = {
    "llama": LlamaConfig(**PLAIN, num_key_value_heads=1),
    "gpt-neox": GPTNeoXConfig(**PLAIN),
}
Made = tuple[Path, Path, PreTrainedModel]


def write_causal(folder: Path, kind: str) -> PreTrainedModel:
    """Write a random checkpoint whose tokenizer has no mask token; returns transformers' model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        model: PreTrainedModel = auto.from_config(CONFIGURATIONS[kind])
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copyfile(EMBEDDED / name, folder / name)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    model.train(mode=False)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A checkpoint, its artifact, and transformers' model."""
    folder: Path = tmp_path_factory.mktemp("llama") / "model"
    model = write_causal(folder, "llama")
    out = folder.with_name("out")
    given: dict[str, Any] = {"samples": 4, "length": LENGTH, "write_report": False}
    qdc.compile(folder, PIPELINE, out=out, geometry="clean", **given)
    return folder, out, model


@pytest.fixture(scope="module")
def graph(made: Made) -> LayerGraph:
    """The traced graph of the checkpoint."""
    return open_model(made[0])[1].graph


def tokens(*shape: int) -> Tensor:
    return torch.randint(2, 2048, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_a_decoder_is_traced_as_it_is(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / kind
    model = write_causal(folder, kind)
    checkpoint, program = open_model(folder)
    facts = program.graph.model
    assert (facts.mask_token_id, facts.causal, facts.logits_shift) == (None, True, 1)
    ids = tokens(2, 20)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    stream = original_stream(program, checkpoint, [ids], torch.device("cpu"))
    last = list(program.graph)[-1].name
    (found,) = stream.compute((last,))
    torch.testing.assert_close(found[last], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(qdc.load_original(folder)(ids), expected, atol=1e-4, rtol=1e-4)


def test_an_artifact_stays_causal(made: Made) -> None:
    """In what is loaded, and through transformers."""
    _, out, _ = made
    ids = tokens(2, 20)
    compiled = qdc.load(out, backend="reference")
    other = ids.clone()
    other[:, -1] += 1
    assert torch.equal(compiled(ids)[:, :-1], compiled(other)[:, :-1])
    assert not torch.equal(compiled(ids), compiled(other))
    through = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(through(ids).logits, compiled(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("llama", marks=pytest.mark.slow), "gpt-neox"])
def test_predictions_of_all_positions_are_tuned(kind: str, tmp_path: Path) -> None:
    """Of norms with biases and linears with biases, too."""
    write_causal(tmp_path / "model", kind)
    passes = (
        "guide,stages(calibrate-cross{token-weights=guided},rtn-lower{group=16}),"
        "distill{rounds=3 batch=1 held-out=0.5},pack"
    )
    given: dict[str, Any] = {"samples": 8, "length": LENGTH, "write_report": False}
    out = tmp_path / "out"
    report = qdc.compile(tmp_path / "model", passes, out=out, geometry="clean", **given)
    assert report.distilled is not None
    assert report.distilled.improved
    assert report.distilled.positions == 4 * LENGTH
    original = qdc.load_original(tmp_path / "model")
    ids, plain = tokens(4, LENGTH), tmp_path / "plain"
    qdc.compile(tmp_path / "model", "rtn-lower{group=16},pack", out=plain, write_report=False)
    right = original(ids).log_softmax(-1)
    wrong = [qdc.load(p, backend="reference")(ids).log_softmax(-1) for p in (plain, out)]
    before, after = (float((right.exp() * (right - each)).sum(-1).mean()) for each in wrong)
    assert after < before


def test_next_token_loss_is_that_of_transformers(
    made: Made, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, out, model = made
    source = read_text(None)
    text = tmp_path / "held.jsonl"
    lines = [json.dumps({"text": document}) for document in source.documents[:3]]
    text.write_text("\n".join(lines), encoding="utf-8")
    options = ["--text", str(text), "--length", str(LENGTH), "--windows", "6"]
    assert run(["eval", str(folder), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    windows = held_out_windows(source.documents[:3], encoder(load_tokenizer(folder)), LENGTH, 6)
    with torch.no_grad():
        expected = float(model(input_ids=windows, labels=windows).loss)
    assert found["next_token_loss"] == pytest.approx(expected, rel=1e-5)
    assert found["tokens"] == windows.shape[0] * (LENGTH - 1)
    assert run(["eval", str(out), *options, "--against", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "next-token loss" in shown
    assert found["text"]["documents"] == 3
    assert "text: 3 documents of " in shown
    assert f"{expected:.4f}" in shown
    assert "mask ratio" not in shown
    assert run(["eval", str(out), *options, "--ratios", "0.5"]) != 0
    assert "the model has no mask token" in capsys.readouterr().err


def test_a_compile_that_draws_masks_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="masks are drawn by calibrate-cross"):
        qdc.compile(made[0], out=tmp_path / "out")


def test_a_plan_that_draws_masks_is_refused(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(made[0]), "--passes", "rtn"]) != 0
    assert "else draw none: --geometry clean" in " ".join(capsys.readouterr().err.split())


def test_masks_are_refused_with_the_pipeline_that_draws_none(graph: LayerGraph) -> None:
    registry = standard_registry()
    with pytest.raises(UnsupportedModel, match="drawn by calibrate-cross") as caught:
        refuse_masks(build_plan("default", registry), graph)
    assert caught.value.help.endswith("else draw none: --geometry clean")
    refuse_masks(build_plan("default", registry, {"geometry": "clean"}), graph)
    # A quarter is kept visible of samples that are masked: it has to go as well.
    with pytest.raises(UnsupportedModel, match="drawn by calibrate-mcs") as caught:
        refuse_masks(build_plan("release", registry), graph)
    pipeline = caught.value.help.partition("--passes '")[2].removesuffix("'")
    assert "calibrate-mcs{geometry=clean}" in pipeline
    refuse_masks(build_plan(pipeline, registry), graph)
    with pytest.raises(UnsupportedModel, match="drawn by") as caught:
        refuse_masks(build_plan("best", registry), graph)
    assert caught.value.help.endswith("else draw none: --geometry clean")


def test_classes_of_masked_tokens_are_refused_with_what_to_write(graph: LayerGraph) -> None:
    with pytest.raises(UnsupportedModel, match="no mask token") as caught:
        QuantizeActivations(clip="search", classes="masked").check(graph)
    assert "w4a4{classes=all}" in caught.value.help
    plan = build_plan("w4a4{classes=all}", standard_registry(), {"geometry": "clean"})
    refuse_masks(plan, graph)
    for step in plan.passes():
        step.check(graph)


class MaskedOnly(CalibrateMcs):
    """A pass that has nothing to look at without masks."""

    name: ClassVar[str] = "masked-only"

    def without_masks(self) -> None:
        return None


def test_a_pass_that_needs_masks_is_to_be_left_out(graph: LayerGraph) -> None:
    with pytest.raises(UnsupportedModel, match="drawn by masked-only") as caught:
        refuse_masks(Plan((MaskedOnly(),)), graph)
    assert "leave out masked-only" in caught.value.help


@pytest.mark.parametrize("command", [["run", "a<mask>"], ["generate", "a"]])
def test_decoding_is_refused(
    made: Made, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = made
    name, text = command
    assert run([name, str(out), text]) != 0
    assert "no mask token: it fills no masked places" in capsys.readouterr().err


def test_facts_without_mask_token_survive_the_text(graph: LayerGraph) -> None:
    text = render(graph, full=True)
    assert "mask none" in text
    assert parse(text, standard_registry().annotations()).model == graph.model


def test_what_reads_both_ways_has_no_next_token(tmp_path: Path) -> None:
    """An encoder without mask token compiles, and nothing measures it."""
    encoder_model = write_native(tmp_path / "bert", "bert")
    folder = rewrite(encoder_model, tmp_path / "model", mask_token_id=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    facts = open_model(folder)[1].graph.model
    assert (facts.mask_token_id, facts.causal) == (None, False)
    qdc.compile(folder, "rtn-lower,pack", out=tmp_path / "out", write_report=False)
    text = tmp_path / "held.txt"
    text.write_text("some words " * 200, encoding="utf-8")
    asked = EvaluationOptions.parse(models=(tmp_path / "out",), text=text, length=16)
    with pytest.raises(QdcError, match="neither a masked loss nor a next-token loss"):
        evaluate_command(asked, as_json=True)
