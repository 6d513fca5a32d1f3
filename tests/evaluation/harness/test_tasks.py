"""Through lm-eval, offline: the local tasks on the embedded model, and what is refused."""

import dataclasses
import json
import os
import socket
from pathlib import Path

import pytest
import torch

from qdc.cli.models import Opened, open_runnable
from qdc.errors import QdcError, UnknownName
from qdc.evaluation.harness.generation import cut, question
from qdc.evaluation.harness.likelihood import default_scorer, score
from qdc.evaluation.harness.options import LikelihoodOptions
from qdc.evaluation.harness.passages import Passage, rolling
from qdc.evaluation.harness.results import document_values, metrics
from qdc.evaluation.harness.subject import Subject
from qdc.evaluation.harness.tasks import Tasks, require_lm_eval
from qdc.evaluation.infill import infill
from qdc.runtime.decoding.options import DecodeOptions
from tests.support.checkpoints import EMBEDDED, write_checkpoint
from tests.support.families import CASES, write_family

pytest.importorskip("lm_eval", reason="lm-eval is not installed")

EXAMPLES = EMBEDDED.parent / "tasks"


@pytest.fixture(autouse=True, scope="module")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever datasets keeps does not outlive the tests."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may leave this machine."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def embedded() -> Subject:
    return subject(open_runnable(EMBEDDED, "cpu", ()))


def subject(opened: Opened, *, chat: bool = False) -> Subject:
    return Subject(
        opened, opened.module, opened.facts, opened.tokenizer, opened.decoding, opened.decode, chat
    )


def test_likelihood_and_generation_through_the_harness(embedded: Subject) -> None:
    """A choice of four is right far more often than by chance, and answers are as decoded alone."""
    from qdc.evaluation.harness.adapter import DiffusionLM

    tasks = Tasks(["python_*"], EXAMPLES)
    assert (tasks.names, tasks.local) == (["python_choice", "python_write"], True)
    assert not tasks.wants_greedy()
    model = DiffusionLM(embedded, LikelihoodOptions(mc_num=4), checks_greedy=False)
    results = tasks.run(model, 12, None, chat=False)
    values = document_values(results["samples"])
    found = {(m.task, m.metric): m for m in metrics(values, results["results"])}
    assert found["python_choice", "acc"].documents == 12
    assert found["python_choice", "acc"].value > 0.6
    assert found["python_write", "exact_match"].documents == 12
    for sample in results["samples"]["python_choice"]:
        for [context, choice], [[value, _]] in zip(
            sample["arguments"], sample["resps"], strict=True
        ):
            [again] = model.loglikelihood([_instance(context, choice)])
            assert value == pytest.approx(again[0], rel=1e-4)
            break
    written = results["samples"]["python_write"]
    first = question(embedded, written[0]["arguments"][0][0], written[0]["arguments"][0][1])
    assert (first.options.length, first.stops) == (8, ("\n",))
    for sample in written[:2]:
        context, settings = sample["arguments"][0]
        [alone] = model.generate_until([_instance(context, settings)])
        assert sample["resps"][0][0] == alone
        assert "\n" not in alone
    assert "HF_HUB_OFFLINE" not in os.environ


def test_user_options_win_over_the_tasks(embedded: Subject) -> None:
    settings = {"until": "x", "max_gen_toks": 8, "temperature": 0.7, "top_p": 0.9}
    plain = question(embedded, "a", {**settings, "do_sample": False}).options
    assert (plain.length, plain.temperature, plain.top_p) == (8, 0.0, None)
    sampled = {**settings, "do_sample": True}
    drawn = question(embedded, "a", sampled, DecodeOptions(length=16)).options
    assert (drawn.length, drawn.temperature, drawn.top_p) == (16, 0.7, 0.9)
    assert question(embedded, "a" * 4000, settings).truncated
    with pytest.raises(QdcError, match="no verifier"):
        question(embedded, "a", {}, DecodeOptions(strategy="apd", length=4))
    with pytest.raises(QdcError, match="leave no room for a prompt"):
        question(embedded, "a", {"max_gen_toks": 256})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_new_tokens": 8},
        {"max_tokens": "8", "max_completion_tokens": 9},
        {"max_completion_tokens": 9},
        {"max_gen_toks": None, "max_tokens": 10, "max_new_tokens": 11},
        {"max_gen_toks": 12, "max_new_tokens": 11},
        {"temperature": 0.5},
        {"temperature": 0.5, "do_sample": False},
        {"temperature": 0.0, "do_sample": True},
        {"temperature": "0.5", "do_sample": True},
        {"do_sample": False},
    ],
)
def test_lengths_and_temperatures_are_read_as_the_harness_reads_them(
    embedded: Subject, settings: dict[str, object]
) -> None:
    from lm_eval.models.utils import normalize_gen_kwargs

    harness = dict(normalize_gen_kwargs({**settings}, 100))
    user = None if any("max" in name for name in settings) else DecodeOptions(length=100)
    found = question(embedded, "a", settings, user).options
    assert found.length == harness["max_gen_toks"]
    assert found.temperature == float(harness.get("temperature", 0.0))


@pytest.mark.parametrize("most", [0, -1])
def test_a_top_k_that_cuts_nothing_is_none(embedded: Subject, most: int) -> None:
    settings = {"max_tokens": 8, "temperature": 0.5, "top_k": most}
    assert question(embedded, "a", settings).options.top_k is None
    assert question(embedded, "a", {**settings, "top_k": 5}).options.top_k == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1.2), ("repetition_penalty", "1.2"), ("num_beams", 10), ("n", 2),
        ("min_p", 0.1), ("no_repeat_ngram_size", 3), ("logit_bias", {"5": 1}), ("steps", 4),
        ("num_beam", 1), ("max_length", 10), ("strategy", "entropy"), ("num_return_sequences", 2),
    ],
)  # fmt: skip
def test_settings_that_would_be_ignored_are_refused(
    embedded: Subject, name: str, value: object
) -> None:
    with pytest.raises(QdcError, match="generation that is not offered") as caught:
        question(embedded, "a", {"max_gen_toks": 8, "until": ["x"], name: value})
    assert caught.value.where[0].startswith(f"{name}: ")
    assert ("--generate" in caught.value.where[0]) == (name in DecodeOptions.model_fields)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1.0), ("repetition_penalty", "1.0"), ("num_beams", 1), ("min_p", 0),
        ("num_beams", None), ("num_return_sequences", 1), ("frequency_penalty", 0.0),
        ("use_cache", True), ("anything", None),
    ],
)  # fmt: skip
def test_settings_that_ask_for_nothing_are_taken(
    embedded: Subject, name: str, value: object
) -> None:
    settings = {"max_gen_toks": 8, "until": ["x"]}
    assert question(embedded, "a", {**settings, name: value}) == question(embedded, "a", settings)


@pytest.mark.parametrize("value", ["many", float("inf"), [8]])
def test_a_length_that_is_no_number_is_refused(embedded: Subject, value: object) -> None:
    with pytest.raises(QdcError, match=r"a task has max_tokens: .* need a number"):
        question(embedded, "a", {"max_tokens": value})


def test_answers_end_at_the_first_stop() -> None:
    assert cut("one two\nthree", ["\n", " t"]) == "one"
    assert cut("one", []) == "one"


def test_greediness_is_checked_where_it_is_wanted(embedded: Subject) -> None:
    from qdc.evaluation.harness.adapter import DiffusionLM

    model = DiffusionLM(embedded, LikelihoodOptions(mc_num=1))
    context = "class Point:\n    def __init__("
    tokens = torch.tensor([[*embedded.encode(context), embedded.facts.mask_token_id]])
    filled = infill(embedded.logits, tokens, tokens == tokens[0, -1], int(tokens[0, -1]))
    written = embedded.decode(filled[0, -1:].tolist())
    requests = [_instance(context, written), _instance(context, "while")]
    assert [greedy for _, greedy in model.loglikelihood(requests)] == [True, False]
    model.checks_greedy = False
    assert [greedy for _, greedy in model.loglikelihood(requests)] == [False, False]


def test_rolling_likelihoods_are_those_of_their_windows(embedded: Subject) -> None:
    from qdc.evaluation.harness.adapter import DiffusionLM

    options = LikelihoodOptions(mc_num=2)
    text = "import os\n" * 120
    tokens = embedded.encode(text)
    windows = list(rolling(tokens, 256))
    assert len(windows) > 1
    passages = [
        Passage((*prompt, *target), len(prompt), len(prompt) + len(target))
        for prompt, target in windows
    ]
    expected = sum(score(embedded.logits, passages, embedded.facts, options))
    [found] = DiffusionLM(embedded, options).loglikelihood_rolling([_instance(text)])
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", ["dream", "sdar", "fast-dllm"])
def test_other_families(family: str, tmp_path: Path) -> None:
    """Shifted logits get something in front of the first token, and block-causal ones blocks."""
    from qdc.evaluation.harness.adapter import DiffusionLM

    opened = open_runnable(write_family(tmp_path / family, CASES[family]), "cpu", ())
    scorer = default_scorer(opened.facts)
    assert scorer == ("dream" if family == "dream" else "llada")
    model = DiffusionLM(subject(opened), LikelihoodOptions(scorer=scorer, mc_num=8))
    text, end = "import os", opened.decoding.eos
    assert end is not None
    [(plain, _)] = model.loglikelihood([_instance("", text)])
    assert [plain] == pytest.approx(model.loglikelihood_rolling([_instance(text)]), rel=1e-4)
    tokens = opened.encode(text)
    front = [end] if opened.facts.logits_shift else []
    whole = Passage((*front, *tokens), len(front), len(front) + len(tokens))
    assert score(opened, [whole], opened.facts, model.options) == pytest.approx([plain], rel=1e-4)
    settings = {"until": ["zzz"], "max_gen_toks": 4, "do_sample": True, "temperature": 5.0}
    answers = model.generate_until([_instance(text, settings)] * 3)
    assert len(set(answers)) > 1
    assert model.generate_until([_instance(text, settings)]) == answers[:1]


def test_published_dream_puts_an_end_behind_each_answer(tmp_path: Path) -> None:
    from qdc.evaluation.harness.adapter import DiffusionLM

    opened = open_runnable(write_family(tmp_path / "dream", CASES["dream"]), "cpu", ())
    options = LikelihoodOptions(scorer="dream-published", mc_num=8)
    [(found, _)] = DiffusionLM(subject(opened), options).loglikelihood([_instance("import", " os")])
    assert opened.decoding.eos is not None
    prompt, target = opened.encode("import"), opened.encode(" os")
    whole = Passage((*prompt, *target, opened.decoding.eos), 1, 1 + len(target))
    assert [found] == pytest.approx(score(opened, [whole], opened.facts, options), rel=1e-4)
    endless = dataclasses.replace(
        subject(opened), decoding=opened.decoding.model_copy(update={"eos": None})
    )
    with pytest.raises(QdcError, match="no end of sequence"):
        DiffusionLM(endless, options)


def test_dialogues_take_the_chat_template(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "chat", d_model=32, mlp_hidden_size=32)
    opened = open_runnable(folder, "cpu", ())
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(QdcError, match="no chat template"):
        subject(opened, chat=True).render(messages, True)
    end = opened.tokenizer.eos_token
    opened.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}" + str(end) + "{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    text = subject(opened, chat=True).render(messages, True)
    assert text == f"hi{end}>"
    assert opened.decoding.eos in subject(opened, chat=True).encode(text)
    assert opened.decoding.eos not in subject(opened).encode(text)


def test_unknown_tasks_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QdcError, match="no such folder"):
        Tasks(["python_choice"], tmp_path / "none")
    with pytest.raises(QdcError, match="names no task"):
        Tasks([""], EXAMPLES)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", OwnTasks)
    with pytest.raises(UnknownName, match="no task is called 'python_chioce'") as found:
        Tasks(["python_write", "python_chioce"], EXAMPLES)
    assert found.value.help == "did you mean python_choice or python_write?"
    mixed = Tasks(["python_write", "arc_*"], EXAMPLES)
    assert (mixed.names, mixed.local) == (["python_write", "arc_easy"], False)


class OwnTasks:
    """The harness's index without its thousands of files."""

    def __init__(self, include_path: str | None, include_defaults: bool) -> None:
        local = ["python_choice", "python_write"] if include_path else []
        self.all_tasks = [*local, *(["arc_easy"] if include_defaults else [])]


def test_examples_that_a_task_excludes_are_not_asked_in_vain(embedded: Subject) -> None:
    from qdc.evaluation.harness.adapter import DiffusionLM

    tasks, model = Tasks(["python_choice"], EXAMPLES), DiffusionLM(embedded, LikelihoodOptions())
    with pytest.raises(QdcError, match="defined without examples"):
        tasks.run(model, 1, 2, chat=False)


def test_data_that_are_not_here_are_one_message(tmp_path: Path) -> None:
    """A task of the hub without a network, and a data file that is missing."""
    text = (EXAMPLES / "python_choice.yaml").read_text(encoding="utf-8")
    (tmp_path / "a.yaml").write_text(
        text.replace("dataset_path: json", "dataset_path: nobody/nothing").partition(
            "dataset_kwargs"
        )[0].replace("python_choice", "away")
        + "output_type: multiple_choice\ntest_split: test\ndoc_to_text: a\ndoc_to_choice: [a]\n"
    )  # fmt: skip
    (tmp_path / "b.yaml").write_text(text.replace("python_choice", "lost"))
    with pytest.raises(QdcError, match="are not on this machine") as found:
        Tasks(["away"], tmp_path).load()
    assert "--include" in found.value.help
    with pytest.raises(QdcError, match="a task cannot be loaded") as found:
        Tasks(["lost"], tmp_path).load()
    assert "relative to that folder" in found.value.help


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdc.evaluation.harness.tasks.find_spec", lambda name: None)
    with pytest.raises(QdcError) as found:
        require_lm_eval()
    assert found.value.help.endswith("pip install 'qdc-compiler[eval]'")


def test_the_examples_hold_no_code() -> None:
    for path in EXAMPLES.glob("*.yaml"):
        assert "!function" not in path.read_text(encoding="utf-8")
    for line in (EXAMPLES / "python_choice.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        assert len(set(entry["choices"])) == 4
        assert 0 <= entry["answer"] < 4


def _instance(*arguments: object) -> object:
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, arguments, 0)
