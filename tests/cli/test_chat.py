"""``qdc chat``: turns are answered with what was said before, as far as the model can read it."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from qdc.cli import chat, run
from qdc.cli.models import open_runnable
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.speech import chat_tokens
from tests.cli.conftest import Command

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SHORT = ("--length", "4")


@pytest.fixture(scope="module")
def talker(model: Path) -> Path:
    """The model with a chat template."""
    folder = shutil.copytree(model, model.with_name("talker"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def say(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def answers(folder: Path, *said: str, begun: tuple[dict[str, str], ...] = ()) -> str:
    """What the decoding loop gives for each message after those before."""
    opened, options = open_runnable(folder, "cpu", []), DecodeOptions(length=4)
    messages, found = list(begun), []
    for text in said:
        messages.append({"role": "user", "content": text})
        tokens = chat_tokens(opened.tokenizer, messages)
        answer = decode(opened.module, [tokens], options, opened.decoding).answers[0]
        found.append(opened.decode(answer))
        messages.append({"role": "assistant", "content": found[-1]})
    return "".join(f"{text}\n" for text in found)


def test_turns_are_answered_with_all_before(
    talker: Path, qdc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, "a", "", "b")
    found = qdc("chat", talker, *SHORT)
    assert found == answers(talker, "a", "b")
    assert found != answers(talker, "a") + answers(talker, "b")


def test_system_message_and_turns_come_first(
    talker: Path, tmp_path: Path, qdc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = ({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"})
    (tmp_path / "turns.jsonl").write_text("".join(json.dumps(each) + "\n" for each in begun))
    say(monkeypatch, "a")
    found = qdc("chat", talker, *SHORT, "--system", "s", "--turns", tmp_path / "turns.jsonl")
    assert found == answers(talker, "a", begun=({"role": "system", "content": "s"}, *begun))


def test_json_is_what_turns_reads(
    talker: Path, tmp_path: Path, qdc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, "a", "b")
    whole = qdc("chat", talker, *SHORT, "--json")
    assert "".join(f"{json.loads(line)['content']}\n" for line in whole.splitlines()[1::2]) == (
        answers(talker, "a", "b")
    )
    lines = whole.splitlines(keepends=True)
    (tmp_path / "first.jsonl").write_text("".join(lines[:2]))
    say(monkeypatch, "b")
    again = qdc("chat", talker, *SHORT, "--json", "--turns", tmp_path / "first.jsonl")
    assert again == "".join(lines[2:])


def test_new_forgets_and_exit_ends(
    talker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, "a", chat.NEW, "a", chat.LEAVE[0], "never read")
    assert run(["chat", str(talker), *SHORT]) == 0
    out, error = capsys.readouterr()
    assert out == 2 * answers(talker, "a")
    assert error == "a new conversation\n"


def test_oldest_turns_are_left_out_and_that_is_said(
    talker: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model reads 64 tokens; a turn of the user goes with its answer."""
    read = []
    monkeypatch.setattr(
        chat, "chat_tokens", lambda tokenizer, m: read.append(m) or chat_tokens(tokenizer, m)
    )
    say(monkeypatch, *("some words of a turn that is rather long" for _ in range(4)))
    assert run(["chat", str(talker), *SHORT, "--system", "s"]) == 0
    assert "oldest messages are left out" in capsys.readouterr().err
    assert [message["role"] for message in read[-1][:2]] == ["system", "user"]
    assert len(read[-1]) < 8


def test_refusals(
    model: Path, talker: Path, refused: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, "a")
    assert "has no chat template" in refused("chat", model)
    assert "needs an autoregressive verifier" in refused("chat", talker, "--strategy", "apd")
    say(monkeypatch, "word " * 80)
    assert "the model takes 64" in refused("chat", talker, *SHORT)
