"""Prompts and answers: packed into windows, prompts visible, templates applied."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.errors import InvalidCalibration, InvalidCheckpoint
from qdc.passkit.dialogues import draw_dialogues, fit
from qdc.text.records import Dialogue, Fields, Message
from qdc.text.source import read_source
from qdc.text.tokenizer import Encoder, encoder, load_tokenizer
from tests.support.checkpoints import EMBEDDED, TOKENIZER

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no such role ' + m.role) }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def record(number: int, prompt: int, answer: int) -> Dialogue:
    return Dialogue((Message("user", f"{number} {prompt} {answer}"),), "")


def encode(dialogue: Dialogue) -> tuple[list[int], list[int]]:
    """Tokens that tell record and kind: prompts are even, answers odd."""
    number, prompt, answer = map(int, dialogue.prompt[0].content.split())
    return [2 * number] * prompt, [2 * number + 1] * answer


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12),
    samples=st.integers(1, 4),
    length=st.integers(2, 25),
    seed=st.integers(0, 9),
)
def test_only_answers_may_be_masked_and_every_window_has_one(
    sizes: list[tuple[int, int]], samples: int, length: int, seed: int
) -> None:
    records = [record(number, *size) for number, size in enumerate(sizes)]
    usable = [fit(encode(r), length) for r in records if encode(r)[1]]
    enough = len(usable) >= samples and sum(len(p) + len(a) for p, a in usable) >= length
    if not enough and len(usable) < samples:
        with pytest.raises(InvalidCalibration, match=f"found {len(usable)} records with an answ"):
            draw_dialogues(records, encode, samples, length, seed)
    if not enough:
        return
    tokens, answers, *_ = draw_dialogues(records, encode, samples, length, seed)
    assert tokens.shape == answers.shape == (samples, length)
    assert torch.equal(answers, tokens % 2 == 1)
    assert answers.any(1).all()
    firsts = [row[0] // 2 for row in tokens.tolist()]
    assert all(sizes[first][1] for first in firsts), "records without an answer are left out"
    again, *_ = draw_dialogues(records, encode, samples, length, seed)
    assert torch.equal(tokens, again)


def test_a_long_record_loses_the_start_of_its_prompt() -> None:
    prompt, answer = list(range(100)), [-1] * 3
    assert fit((prompt, answer), 10) == (prompt[-7:], answer)
    assert fit((prompt, [-1] * 50), 10) == (prompt[-5:], [-1] * 5)
    assert fit((prompt[:2], [-1] * 50), 10) == (prompt[:2], [-1] * 8)
    assert fit((prompt[:2], answer), 10) == (prompt[:2], answer)


def test_windows_start_with_records_of_their_own() -> None:
    records = [record(number, 2, 2) for number in range(20)]
    tokens, _, counts, _ = draw_dialogues(records, encode, 10, 8, 0)
    assert counts == (20, 80, 20, 0, 0)
    used = (tokens // 2).flatten()[::4].tolist()
    assert sorted(used) == list(range(20)), "no record comes twice before all have come"
    other, *_ = draw_dialogues(records, encode, 10, 8, 1)
    assert not torch.equal(tokens, other)


def test_records_are_counted() -> None:
    """Two records of ten tokens and one without an answer, in windows of eight."""
    records = [record(0, 5, 5), record(1, 2, 0), record(2, 5, 5)]
    counts = draw_dialogues(records, encode, 2, 8, 0).counts
    assert (counts.used, counts.cut) == (2, 2)
    assert (counts.looked_at, counts.tokens, counts.unanswered) in ((3, 20, 1), (2, 20, 0))


def test_too_few_records_say_how_many() -> None:
    with pytest.raises(InvalidCalibration) as caught:
        draw_dialogues([record(0, 3, 4), record(1, 2, 0)], encode, 3, 4, 0)
    assert caught.value.what == (
        "found 1 records with an answer, 4 tokens in all, need 3 records, one a sample, "
        "and 4 tokens"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded tokenizer, with a chat template in a file of its own."""
    for name in TOKENIZER:
        (tmp_path / name).write_bytes((EMBEDDED / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path


def test_the_chat_template_frames_prompt_and_answer(folder: Path) -> None:
    encode = encoder(load_tokenizer(folder))
    given = (Message("system", "be brief"), Message("user", "sort a list"))
    prompt, answer = encode.dialogue(Dialogue(given, "sorted(x)"))
    decode = encode.tokenizer.decode
    assert decode(prompt) == (
        "[system]be brief<|endoftext|>[user]sort a list<|endoftext|>[assistant]"
    )
    assert decode(answer) == "sorted(x)<|endoftext|>"
    assert prompt.count(0) == 2, "the template's special tokens are special"
    assert answer[-1] == 0


def test_the_template_may_lie_in_the_settings(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    for stored in ("{{ messages[0].content }}!", [{"name": "default", "template": "{{ 1 }}!"}]):
        settings = json.loads(path.read_text()) | {"chat_template": stored}
        path.write_text(json.dumps(settings))
        found = load_tokenizer(folder).chat_template
        assert found == (stored if isinstance(stored, str) else "{{ 1 }}!")


def test_without_a_template_turns_are_lines() -> None:
    encode: Encoder = encoder(load_tokenizer(EMBEDDED))
    assert encode.tokenizer.chat_template is None
    prompt, answer = encode.dialogue(Dialogue((Message("user", "a"), Message("user", "b")), "c"))
    assert encode.tokenizer.decode(prompt) == "a\nb\n"
    assert encode.tokenizer.decode(answer) == "c"


def test_a_template_that_refuses_is_an_error_of_the_text(folder: Path) -> None:
    encode = encoder(load_tokenizer(folder))
    with pytest.raises(
        InvalidCalibration, match="refuses a dialogue of 1 turns: no such role tool"
    ):
        encode.dialogue(Dialogue((Message("tool", "x"),), "y"))
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(InvalidCalibration, match="the chat template refuses"):
        encoder(load_tokenizer(folder)).dialogue(Dialogue((Message("user", "x"),), "y"))
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InvalidCheckpoint, match="is not UTF-8"):
        load_tokenizer(folder)


@pytest.mark.parametrize("broken", ["{{ 1 // 0 }}", "{{ '{a}'.format() }}", "{{ '{5}'.format() }}"])
def test_a_template_that_fails_is_an_error_of_the_text(folder: Path, broken: str) -> None:
    (folder / "chat_template.jinja").write_text(broken)
    with pytest.raises(InvalidCalibration, match="the chat template refuses"):
        encoder(load_tokenizer(folder)).dialogue(Dialogue((Message("user", "x"),), "y"))


def test_a_template_runs_in_a_sandbox(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidCalibration, match="the chat template refuses"):
        encoder(load_tokenizer(folder)).dialogue(Dialogue((Message("user", "x"),), "y"))


def lines(path: Path, *entries: object) -> Path:
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


def test_prompts_and_answers_of_a_file(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"q": "two?", "a": "2"}, {"q": "three?", "a": "3"})
    source = read_source(path, Fields.parse(chat="q,a"))
    assert source.documents == ()
    assert list(source.dialogues) == [
        Dialogue((Message("user", "two?"),), "2"),
        Dialogue((Message("user", "three?"),), "3"),
    ]


def test_messages_of_a_file_end_with_the_last_answer(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
        {"role": "assistant", "content": "later"},
        {"role": "user", "content": "?"},
    ]
    [found] = read_source(
        lines(tmp_path / "a.jsonl", {"messages": turns}), Fields.parse(chat="messages")
    ).dialogues
    assert [turn.content for turn in found.prompt] == ["hi", "hello", "bye"]
    assert found.answer == "later"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"messages": "hi"}, "the field 'messages' holds text, need a list of messages"),
        ({"messages": []}, "found 0 messages, need a prompt and an answer"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "found 1 messages"),
        (
            {"messages": [{"role": "user"}]},
            "the field 'content' is missing\n  at    a.jsonl line 1",
        ),
        ({"message": []}, "the field 'messages' is missing"),
    ],
)
def test_messages_that_are_none_are_refused(tmp_path: Path, entry: object, expected: str) -> None:
    path = lines(tmp_path / "a.jsonl", entry)
    with pytest.raises(InvalidCalibration) as caught:
        read_source(path, Fields.parse(chat="messages"))
    assert expected in str(caught.value)


@pytest.mark.parametrize(("text", "chat"), [("body", "a,b"), ("text", "a,b,c"), ("text", "a,")])
def test_fields_that_contradict_each_other_are_refused(text: str, chat: str) -> None:
    with pytest.raises(InvalidCalibration, match="need one of them"):
        Fields.parse(text, chat)


def test_a_chat_of_plain_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("words")
    with pytest.raises(InvalidCalibration, match="'q' is asked of text that has no fields"):
        read_source(path, Fields.parse(chat="q,a"))
