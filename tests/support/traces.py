"""What published sampling code decided, step by step, and the same asked of the loop here.

Each trace holds the settings of one run and its ``states``: the tokens before each call of the
model and at the end. Calls that decide nothing leave a state twice; those are compared once.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qdc.ir.facts import ModelFacts
from qdc.models.families import BUILT_IN
from qdc.numerics.noise import Places
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.reader import Model
from qdc.runtime.load import load_checkpoint
from tests.support.published import FIXTURES, config_of, write_published

PUBLISHED = FIXTURES
ENDS = (151, 152)
"""The ids that stand for LLaDA's end of sequence and end of turn in these vocabularies."""

Trace = Mapping[str, Any]
State = list[list[int]]


class Replay(NamedTuple):
    """States of one run, here and there, without repetitions."""

    found: list[State]
    expected: list[State]
    calls: int
    """Of the model, here."""


def read_traces(kind: str) -> list[tuple[str, Trace]]:
    """All traces of one kind, each with the folder of its model."""
    found = []
    for path in sorted(PUBLISHED.glob("*/traces*.json")):
        for trace in json.loads(path.read_text(encoding="utf-8")):
            if trace.get("kind", "llada") == kind:
                found.append((path.parent.name, trace))
    return found


@cache
def open_model(folder: str) -> tuple[nn.Module, ModelFacts]:
    """Load the checkpoint of a folder, in float32, with its facts."""
    with TemporaryDirectory() as place:
        module = load_checkpoint(write_published(Path(place), folder), "cpu", torch.float32)
    return module, BUILT_IN.build(config_of(folder))[1]


def replay(folder: str, trace: Trace, **options: Any) -> Replay:
    """Decode the prompt of a trace, and put what came of it beside what is published."""
    module, facts = open_model(folder)
    ends = tuple(trace.get("ends", ENDS))
    return replay_on(module, DecodeFacts.of(facts, ends[0], ends), trace, **options)


def replay_on(model: Model, facts: DecodeFacts, trace: Trace, **options: Any) -> Replay:
    """As ``replay``, with any model."""
    seen: list[State] = []
    found = decode(
        model,
        trace["prompt"],
        DecodeOptions.model_validate({"length": trace["length"], "stop_early": False, **options}),
        facts,
        lambda state: seen.append(state.tokens.tolist()),
    )
    expected = once([_without_padding(trace, state) for state in trace["states"]])
    start = _blank(trace, facts.mask)
    here = once([start, *(_without_padding(trace, state) for state in seen)])
    # A published run may begin with a first token that the prompt's own call has decided.
    return Replay(here if expected[0] == start else here[1:], expected, found.forwards)


def once(states: list[State]) -> list[State]:
    """Leave out states that repeat the one before."""
    return [state for i, state in enumerate(states) if not i or state != states[i - 1]]


def _blank(trace: Trace, mask: int) -> State:
    width = max(map(len, trace["prompt"]))
    return [[0] * (width - len(row)) + row + [mask] * trace["length"] for row in trace["prompt"]]


def _without_padding(trace: Trace, state: State) -> State:
    """Put 0 in place of what stands in the padding, which is nobody's business."""
    width = max(map(len, trace["prompt"]))
    pads = [width - len(row) for row in trace["prompt"]]
    return [[0] * pad + row[pad:] for pad, row in zip(pads, state, strict=True)]


def llada_options(trace: Trace) -> dict[str, Any]:
    """Options for LLaDA's ``generate`` and Fast-dLLM's on LLaDA."""
    options = {
        "block": trace["block"],
        "cache": trace.get("cache", "none"),
        "cfg": trace.get("cfg", 0.0),
        "forbid_eos": trace.get("logits_eos_inf", False),
        "late_eos": trace.get("confidence_eos_eot_inf", False),
    }
    for rule in ("threshold", "factor"):
        if rule in trace:
            return options | {"strategy": rule, rule: trace[rule]}
    strategy = {"low_confidence": "low-confidence"}.get(trace["remasking"], trace["remasking"])
    return options | {"strategy": strategy, "steps": trace["steps"]}


def dream_options(trace: Trace) -> dict[str, Any]:
    """Options for Dream's ``diffusion_generate`` and Fast-dLLM's on Dream."""
    options = {name: trace[name] for name in ("top_p", "top_k", "block", "cache") if name in trace}
    if trace["alg"] == "confidence_threshold":
        return options | {"strategy": "threshold", "threshold": trace["threshold"]}
    return options | {"strategy": trace["alg"].replace("_", "-"), "steps": trace["steps"]}


def v2_options(trace: Trace) -> dict[str, Any]:
    """Options for ``generate`` of Fast-dLLM v2."""
    return {"block": trace["block"], "strategy": "threshold", "threshold": trace["threshold"]}


def sdar_options(trace: Trace) -> dict[str, Any]:
    """Options for SDAR's ``block_diffusion_generate``; steps are those of all blocks there."""
    begin, block, steps = len(trace["prompt"][0]), trace["block"], trace["denoising_steps"]
    whole = (begin + trace["length"]) // block - -(-begin // block)
    tail = -begin % block if steps == block else 0
    options = {
        "strategy": trace["strategy"].removeprefix("low_confidence_"),
        "block": block,
        "steps": whole * steps + tail,
        "temperature": trace["temperature"],
        "top_k": trace["top_k"] or None,
    }
    if trace["strategy"] == "low_confidence_dynamic":
        options["threshold"] = trace["threshold"]
    return options


def llada2_options(trace: Trace) -> dict[str, Any]:
    """Options for ``generate`` of LLaDA2; its steps are those of one block, those here of all."""
    begin, block = len(trace["prompt"][0]), trace["block"]
    blocks = -(-(begin + trace["length"]) // block) - begin // block
    return {
        "strategy": "dynamic",
        "steps": blocks * trace["steps"],
        "threshold": trace["threshold"],
    }


def diffcoder_options(trace: Trace) -> dict[str, Any]:
    """Options for ``generate_block`` of Stable-DiffCoder."""
    if "threshold" in trace:
        return {"strategy": "threshold", "threshold": trace["threshold"]}
    return {"strategy": "low-confidence", "steps": trace["steps"]}


class PublishedNoise:
    """Stands in for ``Places.draws``: what the published run drew, or no noise at all."""

    def __init__(self, trace: Trace) -> None:
        """Take the uniform numbers of a trace, which has a table for each step."""
        self.drawn = trace.get("drawn")

    def draws(self, places: Places, kind: str, count: int, device: object = "cpu") -> Tensor:
        """As ``Places.draws``; equal numbers for tokens give the likeliest one."""
        if kind == "token":
            return torch.full((len(places.positions), count), 0.5, dtype=torch.float64)
        assert self.drawn is not None
        table = torch.tensor(self.drawn[places.step], dtype=torch.float64)
        # LLaDA draws for all columns, Dream for the open places.
        return (table if table.ndim == 1 else table[0][list(places.positions)])[:, None]
