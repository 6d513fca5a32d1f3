"""Mistakes of the first hour: the message names the option, and the nearest thing that works."""

import inspect
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from qdc.artifact.partial import partial_folder
from qdc.checkpoint.elsewhere import FILES, no_folder
from qdc.cli import elsewhere, run
from qdc.cli.prompts import Asked, read_prompt
from qdc.compiling.compiler import run_job
from qdc.errors import InvalidCalibration, OrderOutOfRange, QdcError, UnsupportedModel, nearest
from qdc.exporting.options import Format
from qdc.passkit import CalibrationOptions
from qdc.passkit.samples import Samples, draw_samples
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from qdc.runtime.options import RunOptions
from qdc.streaming.unit import Unit
from tests.support.checkpoints import write_checkpoint
from tests.support.commands import environment
from tests.support.compiles import compile_tiny, make_job, run_passes, spying

HUB = "GSAI-ML/LLaDA-8B-Instruct"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, n_layers=1)


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that is refused says."""
    assert run([str(each) for each in arguments]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "help"),
    [
        ("--samples", 0, "the least is --samples 1"),
        ("--samples", 1 << 21, "the largest is --samples 1048576"),
        ("--length", 1, "the least is --length 2"),
        ("--length", 9999, "the longest is --length 64"),
        ("--seed", -1, "the least is --seed 0"),
        ("--seed", 1 << 62, f"the largest is --seed {(1 << 62) - 1}"),
    ],
)
def test_value_out_of_range(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    option: str, value: int, help: str,
) -> None:  # fmt: skip
    """Without a caret into a pipeline that nobody typed."""
    text = said(capsys, "compile", model, "-o", tmp_path / "out", option, value)
    assert str(value) in text
    assert help in text
    assert "^" not in text
    assert "quantize-vocab" not in text
    assert list(tmp_path.iterdir()) == []


def test_value_in_a_pipeline_that_was_typed_is_pointed_at(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "stages(calibrate-mcs{samples=0},sensitivity,gptq-lower),pack"
    assert "^" in said(capsys, "compile", model, "-o", tmp_path / "out", "--passes", text)


def test_bits_are_the_pipelines(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, "compile", model, "-o", tmp_path / "out", "--bits", 4)
    assert text.startswith("error[QDC001] no such option: --bits\n  help")
    typed = shlex.split(text.rpartition("--passes ")[2])[0]
    assert elsewhere.BITS in str(build_plan(typed, standard_registry()))
    for name, bits in (("small", "1.5"), ("large", "3")):
        assert f"{name} for {bits}" in text
        plan = str(build_plan(name, standard_registry()))
        assert f"allocate-rates{{budget={bits} count=layers " in plan


def test_format_lists_what_there_is(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, "compile", model, "-o", tmp_path / "out", "--format", "gguf")
    assert "Possible options" not in text
    for name in (*standard_registry().backends, *get_args(Format)):
        assert name in text


def test_name_of_a_strategy_and_of_a_pass(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "generate", model, "x", "--strategy", "lowconf")
    assert "no strategy is called 'lowconf'" in text
    assert "did you mean low-confidence?" in text
    assert nearest("daq", standard_registry().passes).startswith("did you mean daq-lower")


@pytest.mark.parametrize("chat", [True, False])
def test_empty_prompt(chat: bool) -> None:
    asked = Asked(" \n", special=False, chat=chat, system=None, turns=None)
    with pytest.raises(QdcError, match="the prompt is empty"):
        read_prompt(asked, RunOptions())


@pytest.mark.parametrize("command", [("plan",), ("compile", "-o", "out"), ("generate", "x")])
def test_name_of_the_hub(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The command that fetches it is printed; a model that was fetched is found in the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    name, *rest = command
    text = said(capsys, name, HUB, *rest)
    assert f"hf download {HUB} --local-dir LLaDA-8B-Instruct --include " in text
    snapshot = tmp_path / "cache" / f"models--{HUB.replace('/', '--')}" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert f"give {snapshot}" in said(capsys, name, HUB, *rest)


def test_name_of_a_folder_that_is_mistyped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it may be a name of the hub too."""
    monkeypatch.chdir(tmp_path)
    for name in ("tiny-llada", "notes"):
        folder = Path("models", name)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    assert no_folder(Path("models/tiny-lada")).help == "did you mean models/tiny-llada?"
    assert "hf download models/other" in no_folder(Path("models/other")).help


def test_what_is_printed_for_the_hub_is_a_command_of_its_library() -> None:
    """Its options take one value each, and may be repeated where they are lists."""
    from huggingface_hub.cli.download import download

    words = shlex.split(no_folder(Path(HUB)).help.splitlines()[-1])
    assert words[:3] == ["hf", "download", HUB]
    options = list(zip(words[3::2], words[4::2], strict=True))
    assert options == [("--local-dir", "LLaDA-8B-Instruct"), *(("--include", f) for f in FILES)]
    takes = inspect.signature(download).parameters
    assert "list[str]" in str(takes["include"].annotation)
    assert "local_dir" in takes


@pytest.mark.parametrize("place", ["", "hub", "hub/models--a--b", "hub/models--a--b/snapshots"])
def test_root_of_a_cache_leads_to_its_snapshot(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    for command in (("plan",), ("run", "a <mask>")):
        text = said(capsys, command[0], tmp_path / place, *command[1:])
        assert f"help  give {snapshot}" in text


def test_pickled_weights_are_converted_as_the_message_says(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a model"
    write_checkpoint(folder, d_model=32, mlp_hidden_size=48, n_layers=1)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for number in range(2):
        part = dict(list(tensors.items())[number::2])
        torch.save(part, folder / f"pytorch_model-0000{number + 1}-of-00002.bin")
    torch.save({"lr": 1}, folder / "optimizer.bin")
    text = said(capsys, "plan", folder)
    command = shlex.split(text.rpartition("python -c ")[2])
    assert len(command) == 1
    subprocess.run([sys.executable, "-c", command[0]], check=True, env=environment())
    converted = load_file(folder / "model.safetensors")
    assert converted.keys() == tensors.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in tensors.items())


def test_text_is_looked_at_before_the_first_pass(model: Path, tmp_path: Path) -> None:
    """Also for a pass that would read it only after others have taken their time."""
    (tmp_path / "short.txt").write_text("too short")
    seen: list[str] = []
    with pytest.raises(InvalidCalibration, match="need at least"):
        run_passes(
            model, tmp_path, spying(lambda label, unit: seen.append(label)),
            "spy-all{label=first},stages(calibrate-mcs,sensitivity)", stop_after="sensitivity",
            calibration=tmp_path / "short.txt", samples=4, length=64,
        )  # fmt: skip
    assert not seen


def test_samples_are_drawn_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def counted(*given: Any, **named: Any) -> Samples:
        drawn.append(given)
        return draw_samples(*given, **named)

    monkeypatch.setattr("qdc.passkit.calibration.draw_samples", counted)
    compile_tiny(model, tmp_path / "out")
    assert len(drawn) == 1
    assert issubclass(standard_registry().passes["calibrate-mcs"], CalibrationOptions)


@pytest.mark.parametrize("kind", [UnsupportedModel, OrderOutOfRange])
def test_mistake_found_late_leaves_nothing_that_blocks(
    kind: type[QdcError], model: Path, tmp_path: Path
) -> None:
    """A step was finished, and nothing can go on from it: the model stays, or the budget does."""

    def refuse(label: str, unit: Unit) -> None:
        if label == "late":
            raise kind("the model mixes the documents of a window")

    passes = (
        "spy-all{label=early},spy-all{label=late},stages(calibrate-mcs,sensitivity,gptq-lower),pack"
    )
    few: dict[str, Any] = {"samples": 4, "length": 16}
    with pytest.raises(kind) as caught:
        run_job(make_job(model, tmp_path / "out", spying(refuse), passes=passes, **few))
    assert "--resume" not in str(getattr(caught.value, "__notes__", ()))
    assert not partial_folder(tmp_path / "out").exists()
    compile_tiny(model, tmp_path / "out")
