"""Options that cannot work: one message that says why, exit code 1."""

import json
import os
from pathlib import Path

import pytest

from qdc.cli import run
from qdc.compiling.savepoints import Savepoints
from qdc.pipeline.traversal import Step
from qdc.text.tokenizer import encoder, load_tokenizer
from tests.cli.conftest import Command
from tests.support.checkpoints import write_checkpoint

RTN = ("--passes", "rtn-lower,pack")
SMALL = ("--samples", "4", "--length", "16")
HIGH = "calibrate-mcs,sensitivity,abmp-allocate{base=4 ratio=0.5},daq-lower,pack"
SINGULAR = "calibrate-mcs,sensitivity{damp=1e-30 attempts=1},abmp-allocate,daq-lower,pack"
OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unmet needs": (
        ("--passes", "daq-lower,pack"),
        ("daq-lower reads @factor", "daq-lower reads @orders"),
    ),
    "nothing packed": (("--passes", "rtn-lower"), ("backend reference reads @packed",)),
    "parse error": (("--passes", "rtn-lower,,pack"), ("expected a pass name", "          ^")),
    "open options": (("--passes", "rtn-lower{bits=2"), ("^",)),
    "nested stages": (("--passes", "stages(stages(rtn-lower)),pack"), ("cannot be nested",)),
    "preset with options": (("--passes", "default{x=1}"), ("takes no options",)),
    "value of a wrong type": (("--passes", "rtn-lower{bits=two},pack"), ("bits", "'two'")),
    "value out of range": (("--samples", "0"), ("--samples 0", "the least is --samples 1")),
    "no number": (("--samples", "many"), ("--samples", "qdc compile --help")),
    "given twice": (("--passes", "calibrate-mcs{seed=1}", "--seed", "2"), ("seed", "--seed")),
    "samples for nobody": ((*RTN, "--samples", "3"), ("no pass", "--samples")),
    "text for nobody": ((*RTN, "--calibration", "TEXT"), ("no pass", "--calibration")),
    "field without file": (("--text-field", "body"), ("--text-field", "--calibration")),
    "folder without dumps": (("--dump-dir", "d"), ("--dump-dir", "--dump-after all")),
    "orders out of range": (("--passes", HIGH, *SMALL), ("3..5", "1..4", "%blocks.0.q_proj")),
    "no inverse": (
        ("--passes", SINGULAR, *SMALL),
        (
            "not positive definite",
            "%blocks.0.q_proj",
            "%blocks.0.k_proj",
            "%blocks.0.ff_out",
            "damp",
        ),
    ),
    "short calibration": (("--calibration", "TEXT"), ("tokens", "need at least the 64 tokens")),
    "calibration folder": (("--calibration", "MODEL"), ("found a folder",)),
    "no size": (("--host-memory", "lots"), ("--host-memory is no size: 'lots'", "8G")),
    "resume and restart": (("--resume", "--restart"), ("--resume", "--restart", "leave one out")),
    "resume and dumps": (("--resume", "--dump-after", "all"), ("--dump-after", "--restart")),
    "resume without artifact": ((*RTN, "--stop-after", "pack", "--resume"), ("--resume", "none")),
    "restart without artifact": ((*RTN, "--stop-after", "pack", "--restart"), ("--restart",)),
    "no CUDA device": (("--device", "cuda"), ("no CUDA device", "--device cpu")),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_are_refused(
    case: str,
    model: Path,
    text: Path,
    tmp_path: Path,
    refused: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments, named = OPTIONS[case]
    places = {"TEXT": text, "MODEL": model}
    message = refused(
        "compile", model, "-o", tmp_path / "out", *(places.get(word, word) for word in arguments)
    )
    assert [part for part in named if part not in message] == []
    # A pass failed, not a check before it.
    left = ["out-repro"] if case == "no inverse" else []
    assert [path.name for path in tmp_path.iterdir()] == left


def test_a_place_without_a_name_is_refused(model: Path, refused: Command) -> None:
    assert "/ has no name" in refused("compile", model, "-o", "/", *RTN)


def test_a_device_is_no_place_for_what_a_compile_leaves(
    model: Path, tmp_path: Path, refused: Command
) -> None:
    """Dumps and repros would lie beside it: in the folder of the devices."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (Path(os.devnull), pipe):
        message = refused("compile", model, "-o", place, *RTN, "--stop-after", "rtn-lower")
        assert f"cannot write to {place}: it is no regular file" in message
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_flag_is_called_as_it_was_given(model: Path, refused: Command) -> None:
    message = refused("serve", model, "--timeout", "inf", "--grace", "inf")
    assert "--timeout: input should be a finite number" in message
    assert "--grace: input should be a finite number" in message
    assert "patience" not in message


def test_a_backend_or_a_strategy_that_there_is_not(refused: Command) -> None:
    assert "no backend is called 'tritn'" in refused("backends", "tritn")
    assert "did you mean entropy" in refused("strategies", "entrop")


def test_named_backends_and_strategies_alone_are_described(qdc: Command) -> None:
    shown = qdc("backends", "triton")
    assert "ahead" in shown
    assert "reference  " not in shown
    assert json.loads(qdc("backends", "reference", "--json"))["backends"][0]["name"] == "reference"
    shown = qdc("strategies", "entropy", "static")
    assert "\nentropy\n" in shown
    assert "\nstatic\n" in shown
    assert "\nfactor\n" not in shown
    found = json.loads(qdc("strategies", "static", "--json"))["strategies"]
    assert [each["name"] for each in found] == ["static"]


COUNTS = {
    "no seed": (("--seeds", "0"), "--seeds 0"),
    "no window": (("--windows", "0"), "--windows 0"),
    "one window, no error": (("--windows", "1", "--against", "MODEL"), "standard error"),
}


@pytest.mark.parametrize("case", COUNTS)
def test_eval_refuses_counts(
    case: str, artifact: Path, model: Path, text: Path, refused: Command
) -> None:
    arguments, named = COUNTS[case]
    words = (model if word == "MODEL" else word for word in arguments)
    assert named in refused("eval", artifact, "--text", text, "--length", 4, *words)


def test_eval_of_one_model_takes_one_window(artifact: Path, text: Path, qdc: Command) -> None:
    table = qdc("eval", artifact, "--text", text, "--length", 4, "--windows", 1)
    assert "   1 window of 4 tokens" in table


PASSES = {
    "backend": (("reference",), "is a backend", "qdc backends"),
    "provided elsewhere": (
        ("--provides", "salience", "daq-lower"), "'salience' is not provided by daq-lower",
        "sensitivity",
    ),
    "preset": (("--provides", "salience", "rtn"), "about passes", "preset"),
}  # fmt: skip


@pytest.mark.parametrize("case", PASSES)
def test_passes_refuses(case: str, refused: Command) -> None:
    arguments, *named = PASSES[case]
    message = refused("passes", *arguments)
    assert [part for part in named if part not in message] == []


def test_run_refuses_a_dump(artifact: Path, tmp_path: Path, refused: Command) -> None:
    message = refused("run", artifact / "ir.qdc", "a <mask>")
    assert "holds no weights" in message
    assert f"give the folder {artifact}\n" in message
    (tmp_path / "03_pack.qdc").write_bytes(b"")
    assert "OUT of qdc compile" in refused("run", tmp_path / "03_pack.qdc", "a <mask>")
    (tmp_path / "m.bin").write_bytes(b"")
    assert "is a file" in refused("run", tmp_path / "m.bin", "a <mask>")


RUNS = {
    "no gap": (("a text",), "no gap", "<mask>"),
    "empty text": (("",), "no gap", "<mask>"),
    "long text": (("word " * 90 + "<mask>",), "the model takes 64", "shorten"),
    "long gap": (("<mask>", "--gap", "65"), "65 tokens", "shorten"),
    "no steps": (("<mask>", "--steps", "0"), "0 steps", "help"),
    "empty gap": (("<mask>", "--gap", "0"), "0 tokens per gap", "help"),
}


@pytest.mark.parametrize("case", RUNS)
def test_run_refuses(case: str, artifact: Path, refused: Command) -> None:
    arguments, *named = RUNS[case]
    message = refused("run", artifact, *arguments)
    assert [part for part in named if part not in message] == []


EVALS = {
    "ratio": (("--ratios", "0,0.5"), "--ratios"),
    "ratio above one": (("--ratios", "1.5"), "--ratios"),
    "long windows": (("--length", "65"), "the model's 64"),
    "no length": (("--length", "0"), "length"),
    "short text": (("--length", "60"), "need at least the 60 tokens"),
}


@pytest.mark.parametrize("case", EVALS)
def test_eval_refuses(case: str, artifact: Path, text: Path, refused: Command) -> None:
    arguments, *named = EVALS[case]
    message = refused("eval", artifact, "--text", text, *arguments)
    assert [part for part in named if part not in message] == []


def test_eval_refuses_models_that_are_not_alike(
    artifact: Path, text: Path, tmp_path: Path, refused: Command
) -> None:
    other = write_checkpoint(tmp_path / "m", max_length=32)
    assert "do not share" in refused("eval", artifact, "--text", text, "--against", other)


def test_eval_refuses_text_that_holds_the_mask(
    text: Path, tmp_path: Path, refused: Command
) -> None:
    """A place that is no mask would be counted as one."""
    odd = write_checkpoint(tmp_path / "odd")
    ids = encoder(load_tokenizer(odd))("for i in range(10)")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "mask_token_id": ids[3]}))
    message = refused("eval", odd, "--text", text, "--length", "16")
    assert "holds the mask token" in message


def test_missing_arguments_are_named(refused: Command) -> None:
    assert "'--out'" in refused("compile", "m")
    assert "'TEXT'" in refused("run", "m")
    assert "'--text'" in refused("eval", "m")
    assert "unexpected extra argument" in refused("families", "x")


def test_interruption_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qdc.cli.lists.backends_command", interrupted)
    assert run(["backends"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_an_interrupted_compile_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: Savepoints, step: Step) -> None:
        save(self, step)
        raise KeyboardInterrupt

    save = Savepoints.save
    monkeypatch.setattr(Savepoints, "save", interrupted)
    model = write_checkpoint(tmp_path / "m")
    assert run(["compile", str(model), "-o", str(tmp_path / "out"), *RTN]) == 130
    output, errors = capsys.readouterr()
    assert output == ""
    assert "1 of 2 steps are done" in errors
    assert "--resume" in errors
    assert errors.endswith("interrupted\n")
