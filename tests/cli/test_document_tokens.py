"""What a model is fed is what its own tokenizer makes of a text, and what a user then means."""

import json
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import AutoTokenizer

import qdc as api
from qdc.cli import run as run_commands
from qdc.cli.models import Opened, open_runnable
from qdc.evaluation.harness.options import LikelihoodOptions
from qdc.evaluation.harness.subject import Subject
from qdc.evaluation.infill import infill
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.results import Decoded
from qdc.text.tokenizer import load_tokenizer
from tests.cli.conftest import Command
from tests.support.checkpoints import write_checkpoint
from tests.support.natives import write_native
from tests.support.tokenizers import MASK, write_tokenizer

Fed = list[list[int]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class of transformers, trained between [CLS] and [SEP]."""
    return write_tokenizer(write_native(tmp_path_factory.mktemp("bert") / "model", "bert"), "bert")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class of transformers behind BOS."""
    folder = write_native(tmp_path_factory.mktemp("llama") / "model", "llama")
    return write_tokenizer(folder, "llama")


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family whose published code adds nothing, with a tokenizer that would."""
    folder = write_checkpoint(
        tmp_path_factory.mktemp("llada") / "model", d_model=32, mlp_hidden_size=32
    )
    return write_tokenizer(folder, "llama")


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> Fed:
    """What ``qdc run`` fills."""
    seen: Fed = []

    def spied(logits: Any, tokens: Tensor, *rest: Any) -> Tensor:
        seen.append(tokens[0].tolist())
        return infill(logits, tokens, *rest)

    # qdc.cli has a function of the same name.
    monkeypatch.setattr(import_module("qdc.cli.run"), "infill", spied)
    return seen


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> Fed:
    """What ``qdc generate`` continues."""
    seen: Fed = []

    def spied(model: Any, given: Sequence[list[int]], *rest: Any, **more: Any) -> Decoded:
        seen.extend(given)
        return decode(model, given, *rest, **more)

    monkeypatch.setattr("qdc.cli.generate.decode", spied)
    return seen


def test_run_fills_what_transformers_would_be_given(bert: Path, qdc: Command, filled: Fed) -> None:
    due = AutoTokenizer.from_pretrained(bert)(f"one {MASK} three.")["input_ids"]
    answers = {
        qdc("run", bert, "one <mask> three."),
        qdc("run", bert, f"one {MASK} three.", "--special"),
        qdc("run", bert, "one <mask> three.", "--special"),
    }
    assert filled == [due] * 3
    [answer] = answers
    assert "[CLS]" not in answer
    assert "[SEP]" not in answer
    assert "[CLS]" in qdc("run", bert, f"[CLS] one {MASK} three. [SEP]", "--special")
    qdc("run", bert, "one <mask> three.", "--document-tokens", "none")
    assert filled[3:] == [due, due[1:-1]]


def test_run_reads_special_tokens_as_text_unless_they_are_meant(
    bert: Path, qdc: Command, refused: Command, filled: Fed
) -> None:
    qdc("run", bert, f"one {MASK} <mask>")
    [ids] = filled
    assert ids.count(1) == 1
    told = refused("run", bert, f"one {MASK}")
    assert "found no gap to fill" in told
    assert "add --special" in told
    assert "--special" not in refused("run", bert, "one two")
    assert (
        len(json.loads(qdc("run", bert, f"{MASK} one {MASK}", "--special", "--json"))["filled"])
        == 2
    )


def test_generate_continues_an_open_text(
    llama: Path, bert: Path, qdc: Command, prompts: Fed
) -> None:
    """Behind what stands in front of a text, and with nothing that closes it."""
    short = ("--length", 4, "--json")
    theirs = AutoTokenizer.from_pretrained(llama)
    found = json.loads(qdc("generate", llama, "one", *short))
    due = theirs("one")["input_ids"]
    qdc("generate", llama, "<s>one", "--special", *short)
    qdc("generate", llama, "<s>one", *short)
    qdc("generate", llama, "one", "--document-tokens", "none", *short)
    assert found["prompt_tokens"] == len(due)
    assert prompts == [
        due, due, theirs("<s>one", split_special_tokens=True)["input_ids"], due[1:],
    ]  # fmt: skip
    qdc("generate", bert, "one two", *short)
    assert prompts[-1] == AutoTokenizer.from_pretrained(bert)("one two")["input_ids"][:-1]


def test_a_terminal_does_not_show_what_was_added(
    llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    shown = []
    for prompt in ("one", "<s>one"):
        command = ["generate", str(llama), prompt, "--special", "--length", "2"]
        assert run_commands(command) == 0
        shown.append(capsys.readouterr().out.count("<s>one"))
    assert shown[0] == 0
    assert shown[1] > 0


def test_generate_refuses_a_mask_in_a_prompt(bert: Path, refused: Command) -> None:
    found = refused("generate", bert, f"one {MASK}", "--special")
    assert "the prompt writes the mask token, 1 times" in found
    assert "qdc run" in found


def test_a_family_without_special_tokens_stays_so_and_says_it(
    llada: Path, capsys: pytest.CaptureFixture[str], qdc: Command, prompts: Fed
) -> None:
    short = ("--length", "4", "--json")
    assert run_commands(["generate", str(llada), "one", *short]) == 0
    said = "the tokenizer makes of a text '<s> text'; as in generate.py of ML-GSAI/LLaDA, nothing"
    assert said in capsys.readouterr().err
    qdc("generate", llada, "one", *short, "--document-tokens", "add")
    assert [ids[0] for ids in prompts] == [prompts[0][0], 2]
    assert prompts[1][1:] == prompts[0]
    assert said in " ".join(qdc("plan", llada, "--length", 16, "--samples", 4).split())
    families = json.loads(qdc("families", "--json"))["families"]
    told = {each["name"]: each["published_without"] for each in families}
    assert told["llada"] == "generate.py of ML-GSAI/LLaDA"
    assert told["dream"] is None
    assert "no special tokens, as in generate.py of JetAstra/SDAR" in qdc("families")


def test_an_artifact_is_read_as_it_was_calibrated(
    llada: Path, tmp_path: Path, qdc: Command, prompts: Fed
) -> None:
    small: dict[str, Any] = {
        "samples": 4,
        "length": 16,
        "passes": "calibrate-mcs,rtn-lower{bits=4},pack",
    }
    usual = api.compile(llada, out=tmp_path / "usual", write_report=False, **small)
    added = api.compile(
        llada, out=tmp_path / "added", write_report=False, document_tokens="add", **small
    )
    assert (usual.calibration_form, added.calibration_form) == ("", "<s> text")
    assert "as in generate.py" in usual.special_tokens_left_out
    assert added.special_tokens_left_out == ""
    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in ("usual", "added")]
    noted = [each["quantization_config"].get("document_tokens") for each in configs]
    assert noted == [None, "add"]
    qdc("generate", tmp_path / "added", "one", "--length", 4, "--json")
    qdc("generate", tmp_path / "added", "one", "--length", 4, "--json", "--document-tokens", "none")
    assert prompts[0] == [2, *prompts[1]]


def test_a_compile_goes_on_with_the_same_special_tokens_alone(llada: Path, tmp_path: Path) -> None:
    from qdc.checkpoint.folder import Checkpoint
    from qdc.compiling.job import plan_job
    from qdc.compiling.options import CompileOptions
    from qdc.compiling.origin import identity
    from qdc.pipeline.registry import standard_registry

    found = []
    for choice in ("auto", "add"):
        options = CompileOptions.parse(model_dir=llada, out=tmp_path / "o", document_tokens=choice)
        job = plan_job(options, standard_registry(()))
        assert f"document_tokens={choice!r}" in job.command
        found.append(identity(job, job.calibration(), "0", Checkpoint(llada)))
    changed = {name for name in found[0] if found[0][name] != found[1][name]}
    assert changed == {"document-tokens"}


def test_likelihoods_stand_behind_what_stands_in_front_of_a_text(llama: Path, bert: Path) -> None:
    from lm_eval.api.instance import Instance

    from qdc.evaluation.harness.adapter import DiffusionLM
    from qdc.evaluation.harness.generation import question
    from qdc.evaluation.harness.likelihood import score
    from qdc.evaluation.harness.passages import Passage

    def ask(*arguments: str) -> Instance:
        return Instance("loglikelihood", {}, arguments, 0)

    for folder in (llama, bert):
        opened = open_runnable(folder, "cpu", ())
        subject = Subject(
            opened, opened.module, opened.facts, opened.tokenizer, opened.decoding,
            opened.decode, strategies=opened.strategies, surround=opened.encode.surround,
        )  # fmt: skip
        options = LikelihoodOptions(mc_num=4)
        model = DiffusionLM(subject, options, checks_greedy=False)
        theirs = load_tokenizer(folder)
        whole = theirs("one two")["input_ids"]
        if folder == bert:
            whole = whole[:-1]  # an answer is not closed
        front = theirs("one")["input_ids"][: len(whole) - len(opened.encode(" two"))]
        found = model.loglikelihood([ask("one", " two"), ask("", "one two")])
        rolled = model.loglikelihood_rolling([ask("one two")])
        due = [
            Passage(tuple(whole), len(front), len(whole)),
            Passage(tuple(whole), 1, len(whole)),
        ]
        expected = score(opened, due, opened.facts, options)
        assert [value for value, _ in found] == pytest.approx(expected, rel=1e-5)
        assert rolled == pytest.approx(expected[1:], rel=1e-5)
        asked = question(subject, "one", {"max_gen_toks": 4})
        assert list(asked.prompt) == opened.encode.prompt("one")


def test_models_that_are_compared_read_alike(llada: Path) -> None:
    """The option reaches both models of an evaluation, and the encoder of each."""
    added: Opened = open_runnable(llada, "cpu", (), document_tokens="add")
    usual: Opened = open_runnable(llada, "cpu", ())
    assert added.encode.document("a") == [2, *usual.encode.document("a")]
    assert usual.encode.document("a") == usual.encode("a")


TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>a:{% endif %}"
)


def test_a_conversation(
    llama: Path, tmp_path: Path, qdc: Command, refused: Command, prompts: Fed
) -> None:
    folder = shutil.copytree(llama, tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    turns = tmp_path / "turns.jsonl"
    turns.write_text(
        '{"role": "user", "content": "a"}\n{"role": "assistant", "content": "b"}\n',
        encoding="utf-8",
    )
    chat = ("--chat", "--length", 1, "--json")
    qdc("generate", folder, "c", *chat, "--system", "s", "--turns", turns)
    qdc("generate", folder, "c", *chat)
    due = "<s>s:s</s><s>u:a</s><s>a:b</s><s>u:c</s><s>a:"
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.decode(prompts[0]) == due
    assert theirs.decode(prompts[1]) == "<s>u:c</s><s>a:"
    assert "no turn of the user to answer" in refused("generate", folder, *chat, "--turns", turns)
    assert "there is none" in refused("generate", folder, *chat)
    turns.write_text('{"role": "system", "content": "t"}\n{"role": "user", "content": "a"}\n')
    qdc("generate", folder, *chat, "--turns", turns)
    assert str(theirs.decode(prompts[2])).startswith("<s>s:t</s><s>u:a</s><s>a:")
    both = refused("generate", folder, *chat, "--turns", turns, "--system", "s")
    assert "the turns have one" in both


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("x", "--system", "s"), "--system changes nothing without --chat"),
        (("x", "--turns", "t.jsonl"), "--turns changes nothing without --chat"),
        (("x", "--chat", "--special"), "--special changes nothing with --chat"),
        (("x", "--chat", "--document-tokens", "add"), "--document-tokens changes nothing"),
        ((), "there is no prompt"),
        (("x", "--document-tokens", "yes"), "--document-tokens 'yes' is unknown"),
    ],
)
def test_options_that_cannot_be_read(
    options: tuple[str, ...], said: str, llama: Path, refused: Command
) -> None:
    assert said in refused("generate", llama, *options)


def test_evaluations_and_chat_templates(llama: Path, text: Path, refused: Command) -> None:
    found = refused(
        "eval", llama, "--tasks", "x", "--chat", "--document-tokens", "add"
    )  # fmt: skip
    assert "--document-tokens changes nothing with --chat" in found
