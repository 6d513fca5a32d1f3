"""Values that ask for nothing are taken, all others refused with their field and the reason."""

import json
from typing import Any

import pytest

from qdc.runtime.decoding.not_offered import NOT_OFFERED
from qdc.runtime.decoding.options import DecodeOptions
from qdc.serve.bodies import ChatRequest, CompletionRequest, read_body
from qdc.serve.refusals import Refused

PLAIN: dict[str, Any] = {"model": "m", "prompt": "x"}


def completion(**fields: object) -> CompletionRequest:
    return read_body(CompletionRequest, json.dumps({**PLAIN, **fields}).encode())


def chat(*messages: dict[str, object], **fields: object) -> ChatRequest:
    sent = {"model": "m", "messages": messages, **fields}
    return read_body(ChatRequest, json.dumps(sent).encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1), ("top_k", -1), ("top_k", 0), ("top_p", 1), ("stop", ""), ("stop", []),
        ("stop", [""]), ("repetition_penalty", 1), ("repetition_penalty", 1.0), ("min_p", 0),
        ("min_p", 0.0), ("n", 1), ("skip_special_tokens", True), ("ignore_eos", False),
        ("chat_template_kwargs", {}), ("best_of", 1), ("logit_bias", {}), ("tools", []),
        ("guided_json", None), ("frequency_penalty", 0.0), ("echo", False), ("min_tokens", 0),
    ],
)  # fmt: skip
def test_neutral_values_are_as_if_left_out(name: str, value: object) -> None:
    body = completion(**{name: value})
    options = body.options(4).model_dump(exclude={"top_p"} if value == 1 else set())
    plain = completion().options(4).model_dump()
    assert options == {field: plain[field] for field in options}
    assert body.stops == ()


def test_a_top_p_of_0_leaves_the_most_probable_token() -> None:
    options = completion(temperature=1.0, top_p=0).options(4)
    assert options.top_p is not None
    assert 0 < options.top_p < 1e-300
    assert options.temperature == 1.0


def test_an_empty_stop_string_stops_nothing_and_the_others_do() -> None:
    assert completion(stop=["", "x"]).stops == ("x",)


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_is_not_offered_is_named_with_the_reason(name: str) -> None:
    values: list[Any] = [2.5, "x", [1], {"a": 1}]
    for value in values:
        with pytest.raises(Refused, match=f"^{name} is not offered: .+; leave it out$") as caught:
            completion(**{name: value}).options(4)
        assert (caught.value.param, caught.value.code) == (name, "unsupported")
        assert "did you mean" not in caught.value.message
    for neutral in (None, *NOT_OFFERED[name].neutral):
        assert completion(**{name: neutral}).options(4) == DecodeOptions(length=4)


@pytest.mark.parametrize(("name", "value"), [("n", True), ("echo", 0), ("ignore_eos", 0)])
def test_truth_values_are_no_numbers(name: str, value: object) -> None:
    with pytest.raises(Refused, match="is not offered"):
        completion(**{name: value}).options(4)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("temprature", "did you mean temperature"),
        ("max_new_tokens", "here it is called max_tokens"),
        ("dry_multiplier", "leave it out; nothing here acts on it"),
        ("xtc_threshold", "leave it out; nothing here acts on it"),
    ],
)
def test_unknown_fields_are_told_no_name_that_means_something_else(name: str, told: str) -> None:
    with pytest.raises(Refused, match=told) as caught:
        completion(**{name: 1}).options(4)
    assert caught.value.param == name


def test_an_answer_without_text_is_an_empty_turn() -> None:
    body = chat(
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": "b"},
    )
    assert [message.plain()["content"] for message in body.messages] == ["a", "", "b"]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "user", "content": None}, "content is null in a turn of the user, need text"),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            "calls of tools are not offered",
        ),
        (
            {"role": "assistant", "content": "x", "function_call": {"name": "f"}},
            "calls of tools are not offered",
        ),
    ],
)
def test_turns_that_say_more_than_their_text_are_refused(
    message: dict[str, object], told: str
) -> None:
    with pytest.raises(Refused, match=told) as caught:
        chat(message)
    assert (caught.value.param or "").startswith("messages.0")
