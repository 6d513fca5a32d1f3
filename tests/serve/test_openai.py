"""The openai client against the real server: what it gets is what the decoding loop gives."""

from typing import Any

import openai
import pytest

from qdc.cli.models import Opened
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from tests.serve.conftest import Served
from tests.support.checkpoints import EMBEDDED

PROMPT = "def read(path):"
SHORT: dict[str, Any] = {"max_tokens": 12, "extra_body": {"steps": 4}}


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return server.client()


def answer(opened: Opened, prompt: str, **fields: object) -> str:
    options = DecodeOptions.model_validate({"length": 12, "steps": 4, **fields})
    found = decode(opened.module, [opened.encode(prompt)], options, opened.decoding)
    return opened.decode(found.answers[0])


def test_completion(client: openai.OpenAI, server: Served, opened: Opened) -> None:
    found = client.completions.create(model=server.model, prompt=PROMPT, **SHORT)
    (choice,) = found.choices
    assert choice.text == answer(opened, PROMPT)
    assert choice.finish_reason == "length"
    assert found.model == server.model
    assert found.usage is not None
    prompt = len(opened.encode(PROMPT))
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (prompt, 12)
    assert found.usage.total_tokens == prompt + 12
    by_number = client.completions.create(model=server.model, prompt=opened.encode(PROMPT), **SHORT)
    assert by_number.choices[0].text == choice.text


def test_chat_without_a_template_is_lines_of_text(
    client: openai.OpenAI, server: Served, opened: Opened
) -> None:
    found = client.chat.completions.create(
        model=server.model,
        messages=[
            {"role": "developer", "content": "# a module"},
            {"role": "user", "content": [{"type": "text", "text": PROMPT}]},
        ],
        max_completion_tokens=12,
        n=1,
        user="someone",
        response_format={"type": "text"},
        extra_body={"steps": 4},
    )
    message = found.choices[0].message
    assert message.role == "assistant"
    assert message.content == answer(opened, f"# a module\n{PROMPT}\n")


@pytest.mark.parametrize("strategy", ["low-confidence", "random", "threshold", "sequential"])
def test_a_stream_gives_the_same_text_in_order(
    client: openai.OpenAI, server: Served, opened: Opened, strategy: str
) -> None:
    chosen: dict[str, Any] = {"strategy": strategy, "cache": "dual", "block": 8, "cache_bits": 8}
    chosen |= {"threshold": 0.3} if strategy == "threshold" else {"steps": 8}
    chunks = list(
        client.chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": PROMPT}],
            max_tokens=24,
            temperature=0.5,
            seed=5,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=chosen,
        )
    )
    *parts, last, usage = chunks
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    fields = {"steps": None, **chosen, "length": 24, "temperature": 0.5, "seed": 5}
    assert text == answer(opened, f"{PROMPT}\n", **fields)
    assert parts[0].choices[0].delta.role == "assistant"
    assert all(part.choices[0].finish_reason is None for part in parts)
    assert last.choices[0].finish_reason in ("stop", "length")
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens <= 24
    assert {chunk.id for chunk in chunks} == {last.id}
    if strategy == "sequential":
        assert len(parts) > 4, "text is sent as it becomes final"


def test_a_streamed_completion(client: openai.OpenAI, server: Served, opened: Opened) -> None:
    parts = list(client.completions.create(model=server.model, prompt=PROMPT, stream=True, **SHORT))
    assert "".join(part.choices[0].text for part in parts) == answer(opened, PROMPT)
    assert parts[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(client: openai.OpenAI, server: Served, opened: Opened, stream: bool) -> None:
    whole = answer(opened, PROMPT)
    stop = whole[5:8]
    found = client.completions.create(
        model=server.model, prompt=PROMPT, stop=[stop, "nowhere"], stream=stream, **SHORT
    )
    parts = list(found) if isinstance(found, openai.Stream) else [found]
    assert "".join(part.choices[0].text for part in parts) == whole[: whole.index(stop)]
    assert parts[-1].choices[0].finish_reason == "stop"
    if not isinstance(found, openai.Stream):
        assert found.usage is not None
        assert found.usage.completion_tokens < 12


def test_seeds(client: openai.OpenAI, server: Served, opened: Opened) -> None:
    texts = [
        client.completions.create(
            model=server.model, prompt=PROMPT, temperature=1.5, seed=seed, **SHORT
        ).choices[0].text
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert texts[0] == texts[1] != texts[2]
    assert texts[2] == answer(opened, PROMPT, temperature=1.5, seed=2)


def test_a_top_p_of_0_is_greedy(client: openai.OpenAI, server: Served, opened: Opened) -> None:
    found = client.completions.create(
        model=server.model, prompt=PROMPT, temperature=1.5, top_p=0, seed=-1, **SHORT
    )
    assert found.choices[0].text == answer(opened, PROMPT)


def test_models(client: openai.OpenAI, server: Served) -> None:
    (model,) = client.models.list()
    assert model.id == server.model == "tiny-llada"
    assert client.models.retrieve(server.model).id == server.model
    with pytest.raises(openai.NotFoundError, match="no other"):
        client.models.retrieve("gpt-9")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"model": "gpt-9"}, "model", "has the model 'tiny-llada' and no other"),
        ({"n": 2}, "n", "n is not offered"),
        ({"extra_body": {"echo": True}}, "echo", "echo is not offered"),
        ({"logprobs": 3}, "logprobs", "logprobs is not offered"),
        ({"suffix": "}"}, "suffix", "suffix is not offered"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "should be a valid number"),
        ({"top_p": -0.1}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 1000}, "max_tokens", "an answer of 1000: the server takes 256"),
        ({"seed": -3}, "seed", "greater than or equal to 0"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ({"prompt": ["a", "b"]}, "prompt", "one prompt a request"),
        ({"prompt": [1, 99999]}, "prompt", "numbers below 2048"),
        ({"prompt": "a " * 300, "max_tokens": None}, None, "no answer fits"),
        ({"extra_body": {"strategy": "greedy"}}, "strategy", "no strategy is called"),
        ({"extra_body": {"strategy": "random{a=1}"}}, "strategy", "random has no option 'a'"),
        ({"extra_body": {"strategy": "r" * 300}}, "strategy", "at most 256 characters"),
        ({"extra_body": {"steps": "4"}}, "steps", "valid integer"),
        ({"extra_body": {"steps": True}}, "steps", "valid integer"),
        ({"extra_body": {"strategy": "threshold", "steps": 4}}, None, "steps has no effect"),
        ({"extra_body": {"strategy": "apd"}}, "strategy", "started without one"),
        ({"extra_body": {"strateggy": "random"}}, "strateggy", "did you mean strategy"),
        ({"extra_body": {"length": 4}}, "length", "here it is called max_tokens"),
        ({"extra_body": {"min_p": 0.1}}, "min_p", "only top_p and top_k are cut; leave it out"),
        ({"extra_body": {"ignore_eos": True}}, "ignore_eos", "but the end, by forbid_eos"),
        ({"extra_body": {"repetition_penalty": 1.1}}, "repetition_penalty", "written before"),
        ({"extra_body": {"top_k": -2}}, "top_k", "greater than or equal to 1"),
        ({"extra_body": {"dry_base": 2}}, "dry_base", "leave it out; nothing here acts on it"),
    ],
)  # fmt: skip
def test_what_is_refused(
    client: openai.OpenAI, server: Served, fields: dict[str, Any], param: str | None, message: str
) -> None:
    wanted = {"model": server.model, "prompt": PROMPT, "max_tokens": 4, **fields}
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        client.completions.create(**wanted)
    assert caught.value.status_code == (404 if "model" in fields else 400)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "invalid_request_error"
    assert (caught.value.body["param"] or "").partition(".")[0] == (param or "")


def test_an_error_of_a_stream_is_an_error(client: openai.OpenAI, server: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="no effect"):
        client.completions.create(
            model=server.model, prompt=PROMPT, stream=True, extra_body={"factor": 2}
        )


def test_the_example_of_the_page(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    text = (EMBEDDED.parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert "http://127.0.0.1:8000" in code
    code = code.replace("http://127.0.0.1:8000", server.url).replace('"out"', repr(server.model))
    exec(compile(code, "serving.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_special_tokens_of_a_prompt_are_meant_where_it_says_so(
    client: openai.OpenAI, server: Served, opened: Opened
) -> None:
    end = opened.tokenizer.eos_token
    prompt = f"import os{end}{PROMPT}"
    lengths = []
    for special in (True, False, None):
        body = {"steps": 4, "special": special, "add_special_tokens": True}
        found = client.completions.create(
            model=server.model, prompt=prompt, max_tokens=12, extra_body=body
        )
        assert found.usage is not None
        lengths.append(found.usage.prompt_tokens)
    assert lengths[0] == len(opened.encode.prompt(prompt, special=True))
    assert lengths[1:] == [len(opened.encode(prompt))] * 2
    assert lengths[0] < lengths[1]


def test_special_tokens_that_cannot_be_read_are_refused(
    client: openai.OpenAI, server: Served, opened: Opened
) -> None:
    def refusal(**fields: Any) -> str:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=server.model, **fields)
        return str(caught.value)

    mask = opened.tokenizer.mask_token
    masked = refusal(prompt=f"a {mask}", extra_body={"special": True})
    assert "the prompt writes the mask token" in masked
    by_number = refusal(prompt=[5, 6], extra_body={"special": True})
    assert "special is about prompts of text" in by_number
    assert "input should be a valid boolean" in refusal(prompt="a", extra_body={"special": 1})
    with pytest.raises(openai.BadRequestError, match="writes its own special tokens"):
        client.chat.completions.create(
            model=server.model,
            messages=[{"role": "user", "content": "a"}],
            extra_body={"add_special_tokens": True},
        )
