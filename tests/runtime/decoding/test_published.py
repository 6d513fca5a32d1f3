"""The loop decides what published sampling code decided, state by state, on the same weights."""

from pathlib import Path

import pytest
import torch

from qdc.evaluation.harness import likelihood
from qdc.evaluation.harness.draws import Draws
from qdc.evaluation.harness.options import LikelihoodOptions
from qdc.evaluation.harness.passages import Passage
from qdc.models.llada2 import LLADA2
from qdc.numerics.noise import Places
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.options import CACHES
from tests.support.threads import one_thread
from tests.support.traces import (
    PUBLISHED,
    PublishedNoise,
    Trace,
    diffcoder_options,
    dream_options,
    llada2_options,
    llada_options,
    open_model,
    read_traces,
    replay,
    replay_on,
    sdar_options,
    v2_options,
)

__all__ = ["one_thread"]

ROOT = Path(__file__).parents[3]
KINDS = (
    "llada", "dream", "dream-fast", "v2", "sdar", "llada2", "diffcoder", "likelihood", "canvas",
)  # fmt: skip
DIFFERENCES = {
    "topk_margin top-p 0.8": "Ties.",
    "fast dream none threshold 0.2": "Fast-dLLM on Dream without a cache.",
    "low_confidence_static prompt tail 2 steps": "A prompt that ends within a block of SDAR.",
    "low_confidence_dynamic prompt tail 2 steps": "A prompt that ends within a block of SDAR.",
}
"""Traces that differ, and where ``docs/decoding.md`` says why."""


def every(*kinds: str) -> list[object]:
    traces = [found for kind in kinds for found in read_traces(kind)]
    return [pytest.param(*found, id=f"{found[0]} {found[1]['name']}") for found in traces]


def check(folder: str, trace: Trace, options: dict[str, object], *, calls: bool = False) -> None:
    found = replay(folder, trace, **options)
    assert len(found.expected) > 1
    if trace["name"] in DIFFERENCES:
        assert found.found != found.expected, "equal: take it out of the differences"
        return
    assert found.found == found.expected
    if calls:
        assert found.calls == trace["nfe"]


@pytest.mark.parametrize(("folder", "trace"), every("llada"))
def test_llada_and_fast_dllm_on_it(
    folder: str, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trace["remasking"] == "random":
        noise = PublishedNoise(trace)
        monkeypatch.setattr(Places, "draws", lambda *given: noise.draws(*given))
    check(folder, trace, llada_options(trace), calls="nfe" in trace)


@pytest.mark.parametrize(("folder", "trace"), every("dream", "dream-fast"))
def test_dream_and_fast_dllm_on_it(
    folder: str, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trace["alg"] == "origin":
        noise = PublishedNoise(trace)
        monkeypatch.setattr(Places, "draws", lambda *given: noise.draws(*given))
    # Steps that decide nothing are not computed here: those of Dream's times are fewer calls.
    check(folder, trace, dream_options(trace), calls=trace["alg"] == "confidence_threshold")


@pytest.mark.parametrize(("folder", "trace"), every("v2"))
def test_fast_dllm_v2(folder: str, trace: Trace) -> None:
    for cache in ("dual",) if trace["block_cache"] else ("none", "prefix"):
        check(folder, trace, {**v2_options(trace), "cache": cache})


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(("folder", "trace"), every("sdar"))
def test_sdar(folder: str, trace: Trace, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the largest probability was taken in place of a draw, at every temperature."""
    noise = PublishedNoise(trace)
    monkeypatch.setattr(Places, "draws", lambda *given: noise.draws(*given))
    check(folder, trace, {**sdar_options(trace), "cache": cache})


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(("folder", "trace"), every("llada2"))
def test_llada2(folder: str, trace: Trace, cache: str) -> None:
    options = {**llada2_options(trace), "cache": cache}
    check(folder, trace, options, calls=cache == "none")


def test_llada2_is_decoded_as_published_unless_told_otherwise() -> None:
    (trace,) = (t for _, t in read_traces("llada2") if t["name"] == "threshold 0.95")
    module, facts = open_model("llada2-block8")
    known = DecodeFacts.of(facts, 151, (151,), LLADA2.decoding)
    found = replay_on(module, known, trace)
    assert found.found == found.expected
    assert found.calls == trace["nfe"]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(("folder", "trace"), every("diffcoder"))
def test_stable_diffcoder(folder: str, trace: Trace, cache: str) -> None:
    check(folder, trace, {**diffcoder_options(trace), "cache": cache})


@pytest.mark.parametrize(("folder", "trace"), every("likelihood"))
def test_likelihoods(folder: str, trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published masks and weights, in place of those that are drawn here."""
    masks = torch.tensor(trace["masks"], dtype=torch.bool)
    drawn = Draws(masks, torch.tensor(trace["weights"], dtype=torch.float64))
    monkeypatch.setattr(likelihood, "draw", lambda part, options: drawn)
    module, facts = open_model(folder)
    prompt, answer = trace["prompt"], trace["answer"]
    tokens = (*prompt, *answer, *trace.get("behind", ()))
    passage = Passage(tokens, len(prompt), len(prompt) + len(answer))
    options = LikelihoodOptions(
        scorer=trace.get("scorer", "llada"), cfg=trace["cfg"], mc_num=trace["mc_num"]
    )
    (found,) = likelihood.score(module, [passage], facts, options)
    assert found == pytest.approx(trace["value"], rel=1e-5)


def test_differences_are_those_that_the_docs_name() -> None:
    section = (ROOT / "docs" / "decoding.md").read_text(encoding="utf-8")
    section = section.partition("## Differences from published code\n")[2].partition("\n## ")[0]
    assert section
    names = {trace["name"] for kind in KINDS for _, trace in read_traces(kind)}
    assert set(DIFFERENCES) <= names
    for reason in DIFFERENCES.values():
        assert f"**{reason}**" in section


def test_every_model_with_traces_is_replayed() -> None:
    folders = {path.parent.name for path in PUBLISHED.glob("*/traces*.json")}
    replayed = [folder for kind in KINDS for folder, _ in read_traces(kind)]
    assert folders == set(replayed)
    assert len(folders) == 9
    assert len(replayed) == 103
