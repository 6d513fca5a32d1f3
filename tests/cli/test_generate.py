"""``qdc generate``: what it prints is what the loop gives, with every option that it has."""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from qdc.cli import run
from qdc.cli.generate import VEIL
from qdc.cli.models import open_runnable
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import CACHES, DecodeOptions
from qdc.runtime.decoding.speech import chat_tokens
from tests.cli.conftest import Command
from tests.support.decoding import OF_MASKS
from tests.support.natives import write_native

PROMPT = "def read(path):\n"
SHORT = ("--length", 8)
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def answer(folder: Path, **fields: object) -> str:
    opened = open_runnable(folder, "cpu", [])
    options = DecodeOptions.model_validate({"length": 8, **fields})
    found = decode(opened.module, [opened.encode(PROMPT)], options, opened.decoding)
    return opened.decode(found.answers[0])


def test_the_answer_and_what_it_took(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", str(artifact), PROMPT, "--length", "8", "--steps", "4"]) == 0
    out, error = capsys.readouterr()
    assert out == answer(artifact, steps=4) + "\n"
    figures = (
        r"8 tokens, 4 steps, 4 forwards, \d+\.\d\d s: \d+\.\d tokens/s, "
        r"2\.00 tokens/step, by low-confidence\n"
    )
    assert re.fullmatch(figures, error)


@pytest.mark.parametrize("strategy", OF_MASKS)
def test_every_strategy_and_cache(model: Path, qdc: Command, strategy: str) -> None:
    """An original checkpoint, block by block; the options reach the loop."""
    kept = CACHES[OF_MASKS.index(strategy) % len(CACHES)]
    options = ("--strategy", strategy, "--cache", kept, "--block", 4, "--temperature", 0.5)
    found = json.loads(qdc("generate", model, PROMPT, *SHORT, *options, "--seed", 3, "--json"))
    fields = {"strategy": strategy, "cache": kept, "block": 4, "temperature": 0.5, "seed": 3}
    assert found["text"] == answer(model, **fields)
    assert found["tokens_per_step"] == found["written"] / found["steps"]
    assert found["finish"] == ("length" if len(found["tokens"]) == 8 else "stop")


def test_a_cache_of_codes_says_what_it_holds(
    model: Path, qdc: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--cache", "dual", "--cache-bits", 4, "--block", 4)
    found = json.loads(qdc("generate", model, PROMPT, *SHORT, *options, "--json"))
    assert found["text"] == answer(model, cache="dual", cache_bits=4, block=4)
    assert 0 < found["cache_bytes"] < found["cache_plain_bytes"] / 3
    assert run(["generate", str(model), PROMPT, "--length", "8", *map(str, options)]) == 0
    assert re.search(r"\ncache [\d.]+ kB .*, [\d.]+ kB .* as computed\n", capsys.readouterr().err)


def test_the_prompt_of_stdin(model: Path, qdc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    assert json.loads(qdc("generate", model, "-", *SHORT, "--json"))["text"] == answer(model)


@pytest.mark.parametrize("command", ["generate", "run"])
def test_a_prompt_that_is_no_text(
    model: Path, refused: Command, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Whether the locale decodes strictly or lets bytes through as lone surrogates."""
    for errors in ("strict", "surrogateescape"):
        bad = io.TextIOWrapper(io.BytesIO(b"\xff <mask>"), encoding="utf-8", errors=errors)
        monkeypatch.setattr(sys, "stdin", bad)
        assert "the text is not UTF-8" in refused(command, model, "-")
    assert "the text is not UTF-8" in refused(command, model, "\udcff <mask>")
    monkeypatch.setattr(sys, "stdin", None)
    assert "stdin is closed" in refused(command, model, "-")


def test_chat(model: Path, tmp_path: Path, qdc: Command, refused: Command) -> None:
    assert "has no chat template" in refused("generate", model, "hello", "--chat", *SHORT)
    folder = shutil.copytree(model, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    opened = open_runnable(folder, "cpu", [])
    prompt = chat_tokens(opened.tokenizer, [{"role": "user", "content": "hello"}])
    text = opened.tokenizer.decode(prompt)
    assert text == "user: hello<|endoftext|>assistant: "
    options = DecodeOptions(length=8)
    due = decode(opened.module, [prompt], options, opened.decoding).answers[0]
    found = json.loads(qdc("generate", folder, "hello", "--chat", *SHORT, "--json"))
    assert (found["tokens"], found["prompt_tokens"]) == (due, len(prompt))
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}", encoding="utf-8")
    assert "the chat template refuses 1 messages: no" in refused(
        "generate", folder, "hello", "--chat", *SHORT
    )


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_native(tmp_path_factory.mktemp("apd") / "verifier", "llama")


def test_a_verifier(model: Path, verifier: Path, qdc: Command, refused: Command) -> None:
    options = ("--strategy", "apd", "--verifier", verifier, "--apd-mixture", 1, "--json")
    found = json.loads(qdc("generate", model, PROMPT, *SHORT, *options))
    assert (found["steps"], found["written"]) == (1, 8)
    assert "needs an autoregressive verifier" in refused(
        "generate", model, PROMPT, *SHORT, "--strategy", "apd"
    )
    assert "asks no verifier" in refused("generate", model, PROMPT, *SHORT, "--verifier", verifier)


def test_a_terminal_shows_how_the_text_unmasks(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert run(["generate", str(model), PROMPT, "--length", "8", "--seed", "1"]) == 0
    out = capsys.readouterr().out
    assert VEIL in out
    assert "step 8 of 8" in out
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h") == 1
    assert out.endswith(answer(model, seed=1) + "\n")


def test_mistakes(model: Path, refused: Command) -> None:
    assert "the model takes 64" in refused("generate", model, PROMPT, "--length", 60)
    message = refused("generate", model, PROMPT, "--strategy", "treshold")
    assert "no strategy is called 'treshold'" in message
    assert "did you mean threshold?" in message
    assert "steps has no effect on threshold" in refused(
        "generate", model, PROMPT, "--strategy", "threshold", "--steps", 2
    )
