"""Pipelines of transformers with models of qdc: the right places are read, and our loop writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    FillMaskPipeline,
    GenerationConfig,
    pipeline,
    set_seed,
)

from qdc.cli.models import open_runnable
from qdc.errors import QdcError
from qdc.evaluation.infill import infill
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from tests.hf.test_own import write_case

TEXT = "import {}\ndef read(path):\n    return {}"


def tokenizer(folder: Path) -> Any:
    found = AutoTokenizer.from_pretrained(folder)
    assert found.mask_token is not None
    return found


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("name", ["dream", "llada"])
def test_fill_mask_reads_the_places_that_predict(name: str, by_hand: bool, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "model", name)
    words = tokenizer(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    made: Any = FillMaskPipeline if by_hand else pipeline
    fill = made(model=model, tokenizer=words, **({} if by_hand else {"task": "fill-mask"}))
    text = TEXT.format(words.mask_token, words.mask_token)
    tokens = torch.tensor([words(text)["input_ids"]])
    places = (tokens[0] == words.mask_token_id).nonzero().flatten().tolist()
    assert len(places) == 2
    logits = model(tokens).logits[0]
    for place, row in zip(places, fill(text), strict=True):
        expected = logits[place - model.logits_shift].softmax(-1).topk(5)
        assert [each["token"] for each in row] == expected.indices.tolist()
        assert [each["score"] for each in row] == pytest.approx(expected.values.tolist())


def test_fill_mask_is_what_qdc_itself_fills_in(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "model", "dream")
    words, opened = tokenizer(folder), open_runnable(folder, "cpu", ())
    text = f"import os{words.mask_token}"
    fill = pipeline("fill-mask", model=str(folder), tokenizer=words, dtype=torch.float32)
    tokens = torch.tensor([words(text)["input_ids"]])
    mask = words.mask_token_id
    assert fill(text, top_k=1)[0]["token"] == infill(opened, tokens, tokens == mask, mask)[0, -1]


@pytest.mark.parametrize("name", ["dream", "llada", "sdar"])
def test_generate_writes_what_the_loop_writes(name: str, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "model", name)
    opened = open_runnable(folder, "cpu", ())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = [opened.encode("import os"), opened.encode("def read(path):")]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    options = DecodeOptions(length=12, steps=6, block=4, cache="prefix")
    facts = opened.decoding.model_copy(update={"eos": None, "ends": ()})
    expected = decode(opened.module, prompts, options, facts).answers
    given = {"max_new_tokens": 12, "steps": 6, "block": 4, "cache": "prefix", "eos_token_id": []}
    found = model.generate(input_ids=ids, attention_mask=mask, use_cache=True, **given)
    assert torch.equal(found[:, :width], ids)
    assert found[:, width:].tolist() == expected
    right = torch.tensor([row + [0] * (width - len(row)) for row in prompts])
    again = model.generate(right, attention_mask=(right != 0).long(), **given)
    assert again[:, width:].tolist() == expected
    end, filler = expected[0][3], 7
    cut = model.generate(ids[:1], attention_mask=mask[:1], **given | {"eos_token_id": end})
    assert cut[0, width:].tolist()[-1] == end
    both = model.generate(
        ids, attention_mask=mask, pad_token_id=filler, **given | {"eos_token_id": end}
    )
    ended = cut[0, width:].tolist()
    assert both[0, width:].tolist() == ended + [filler] * (both.shape[1] - width - len(ended))


def test_generate_draws_as_it_is_asked_to(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "model", "llada")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7], [5, 6, 7]])
    drawn: dict[str, Any] = {"max_new_tokens": 8, "do_sample": True, "temperature": 5.0}
    first, second = model.generate(ids, **drawn)
    assert not torch.equal(first, second)
    set_seed(3)
    again = model.generate(ids, top_k=0, **drawn)
    set_seed(3)
    config = GenerationConfig(**drawn)  # type: ignore[no-untyped-call]
    assert torch.equal(model.generate(ids, config), again)
    first, second = model.generate(ids, **drawn, seed=4)
    assert torch.equal(first, second)
    greedy = model.generate(ids, max_length=11)
    assert torch.equal(model.generate(ids, **drawn | {"do_sample": False}), greedy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "does not offer num_beams=4"),
        ({"repetition_penalty": 1.2}, "does not offer repetition_penalty=1.2"),
        ({"stop_strings": ["x"]}, "does not offer stop_strings"),
        ({"streamer": object()}, "does not offer streamer"),
        ({"return_dict_in_generate": True}, "does not offer return_dict_in_generate"),
        ({"max_tokens": 8}, "knows no parameter 'max_tokens'"),
        ({"max_length": 3}, "max_length of 3 leaves no room"),
        ({"max_new_tokens": 64}, "the model takes 64"),
        ({"strategy": "apd"}, "no verifier"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "hides tokens within the prompt"),
        ({"input_ids": torch.tensor([[5]])}, "inputs and input_ids"),
    ],
)
def test_generate_refuses_what_it_would_ignore(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_case(tmp_path / "model", "llada"))
    ids = torch.tensor([[5, 6, 7]])
    neutral = {"num_beams": 1, "repetition_penalty": 1.0, "logits_processor": [], "min_p": 0.0}
    assert model.generate(ids, max_new_tokens=4, **neutral).shape == (1, 7)
    with pytest.raises(QdcError, match=message):
        model.generate(ids, **options)


def test_the_pipeline_of_text_generation_runs_the_loop(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "model", "llada")
    words, opened = tokenizer(folder), open_runnable(folder, "cpu", ())
    write = pipeline("text-generation", model=str(folder), tokenizer=words, dtype=torch.float32)
    prompt = "import os"
    [found] = write(prompt, max_new_tokens=8, do_sample=False, steps=4, return_full_text=False)
    options = DecodeOptions(length=8, steps=4)
    facts = opened.decoding.model_copy(update={"eos": None, "ends": ()})
    expected = decode(opened.module, [words(prompt)["input_ids"]], options, facts).answers[0]
    assert found["generated_text"] == words.decode(expected, skip_special_tokens=True)
    [empty] = write("", max_new_tokens=4)
    assert isinstance(empty["generated_text"], str)
