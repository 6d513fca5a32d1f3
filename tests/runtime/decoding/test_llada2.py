"""LLaDA2's own sampler is ``dynamic``; the family is refused, so its equations stand in for it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from qdc.runtime.decoding.facts import DecodeFacts
from tests.support.llada2 import REFUSED, Llada2
from tests.support.threads import one_thread
from tests.support.traces import Trace, replay_on

__all__ = ["one_thread"]

TRACES = json.loads((REFUSED / "traces.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("case", "block"), [("all", None), ("half", None), ("block8", 8)])
@torch.no_grad()
def test_the_equations_are_those_of_the_published_code(case: str, block: int | None) -> None:
    data = load_file(REFUSED / "forward.safetensors")
    found = Llada2(block)(data[f"{case}.ids"])
    torch.testing.assert_close(found, data[f"{case}.logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("trace", [pytest.param(each, id=each["name"]) for each in TRACES])
def test_its_sampler_is_dynamic(trace: Trace) -> None:
    begin, block = len(trace["prompt"][0]), trace["block"]
    blocks = -(-(begin + trace["length"]) // block) - begin // block
    model = Llada2(block)
    facts = DecodeFacts(
        mask=150, vocabulary=model.config["vocab_size"], max_length=4096, attention_block=block
    )
    options = {"steps": blocks * trace["steps"], "threshold": trace["threshold"]}
    found = replay_on(model, facts, trace, strategy="dynamic", **options)
    assert len(found.expected) > 2
    assert found.found == found.expected
    assert found.calls == trace["nfe"]
