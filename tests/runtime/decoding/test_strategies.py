"""Every strategy against its equations, written out place by place in plain Python."""

import math

import pytest
import torch
from torch import Tensor

from qdc.errors import InvalidPipeline, QdcError, UnknownName
from qdc.pipeline.strategybase import Stepwise, Strategy
from qdc.runtime.decoding.choice import within_factor
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.sampling import cut_tail
from qdc.runtime.decoding.strategies import (
    BUILT_IN,
    SHARED,
    STRATEGIES,
    make_strategy,
    needs_canvas,
    shared_options,
)
from tests.support.decoding import places

WIDTH, WORDS = 9, 7
SEEDS = range(6)


def example(seed: int) -> tuple[Tensor, list[int]]:
    """Random logits of a block, ``f64[columns, vocabulary]``, and its open columns."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(WIDTH, WORDS, generator=generator, dtype=torch.float64)
    picked = torch.randperm(WIDTH, generator=generator)[: 3 + seed % (WIDTH - 2)]
    return logits, sorted(picked.tolist())


def stepwise(options: DecodeOptions) -> Stepwise:
    strategy = make_strategy(options)
    assert isinstance(strategy, Stepwise)
    return strategy


def decided(options: DecodeOptions, seed: int, amount: float | None) -> dict[int, int]:
    """What one step of a strategy decides: columns and their tokens."""
    logits, open_columns = example(seed)
    strategy = stepwise(options)
    proposal = strategy.propose(logits[open_columns], places(len(open_columns), seed))
    confidence = torch.full((1, WIDTH), -torch.inf, dtype=torch.float64)
    confidence[0, open_columns] = proposal.confidence
    is_open = torch.zeros(1, WIDTH, dtype=torch.bool)
    is_open[0, open_columns] = True
    given = None if amount is None else torch.tensor([amount])
    chosen = strategy.choose(confidence, is_open, given)[0]
    tokens = dict(zip(open_columns, proposal.tokens.tolist(), strict=True))
    return {column: tokens[column] for column in chosen.nonzero()[:, 0].tolist()}


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    parts = [math.exp(logit - top) for logit in logits]
    return [part / sum(parts) for part in parts]


def llada(options: DecodeOptions, seed: int) -> dict[int, tuple[int, float]]:
    """For each open column LLaDA's token and its probability under the raw logits."""
    logits, open_columns = example(seed)
    uniform = places(len(open_columns), seed).draws("token", WORDS).tolist()
    found = {}
    for column, u in zip(open_columns, uniform, strict=True):
        row = logits[column].tolist()
        noisy = row
        if options.temperature:
            noisy = [
                math.exp(logit) / (-math.log(x)) ** options.temperature
                for logit, x in zip(row, u, strict=True)
            ]
        token = noisy.index(max(noisy))
        found[column] = token, softmax(row)[token]
    return found


def dream(options: DecodeOptions, seed: int, measure: str) -> dict[int, tuple[int, float]]:
    """For each open column Dream's token, and its confidence by this measure."""
    logits, open_columns = example(seed)
    uniform = places(len(open_columns), seed).draws("token", 1)[:, 0].tolist()
    found = {}
    for column, u in zip(open_columns, uniform, strict=True):
        row = [logit / (options.temperature or 1) for logit in logits[column].tolist()]
        order = sorted(range(WORDS), key=lambda token: -row[token])
        if options.top_p is not None:
            chances, before, kept = softmax(row), 0.0, []
            for token in order:
                if before <= options.top_p:
                    kept.append(token)
                before += chances[token]
            row = [logit if token in kept else -math.inf for token, logit in enumerate(row)]
        if options.top_k is not None:
            row = [x if t in order[: options.top_k] else -math.inf for t, x in enumerate(row)]
        p = softmax(row)
        token, total = order[0], 0.0
        if options.temperature:
            for token, chance in enumerate(p):  # noqa: B007
                total += chance
                if total > u:
                    break
        ranked = sorted(p, reverse=True)
        confidence = {
            "probability": p[token],
            "margin": ranked[0] - ranked[1],
            "entropy": sum(x * math.log(x) for x in p if x > 0),
        }[measure]
        found[column] = token, confidence
    return found


def best(found: dict[int, tuple[int, float]], count: int) -> dict[int, int]:
    """Tokens of the ``count`` most confident columns, the left one first."""
    ranked = sorted(found, key=lambda column: (-found[column][1], column))
    return {column: found[column][0] for column in sorted(ranked[:count])}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_low_confidence(seed: int, temperature: float) -> None:
    options = DecodeOptions(strategy="low-confidence", temperature=temperature)
    assert decided(options, seed, 2) == best(llada(options, seed), 2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_random(seed: int, temperature: float) -> None:
    options = DecodeOptions(strategy="random", temperature=temperature)
    found = llada(options, seed)
    order = places(len(found), seed).draws("order", 1)[:, 0].tolist()
    drawn = {c: (found[c][0], x) for c, x in zip(found, order, strict=True)}
    assert decided(options, seed, 2) == best(drawn, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_sequential(seed: int) -> None:
    options = DecodeOptions(strategy="sequential")
    found = llada(options, seed)
    assert decided(options, seed, 2) == {c: found[c][0] for c in list(found)[:2]}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("threshold", [None, 0.0, 0.5, 1.0])
def test_threshold(seed: int, threshold: float | None) -> None:
    options = DecodeOptions(strategy="threshold", threshold=threshold)
    least, found = 0.9 if threshold is None else threshold, llada(options, seed)
    sure = {c: token for c, (token, chance) in found.items() if chance >= least}
    assert decided(options, seed, None) == (sure or best(found, 1))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("factor", [None, 0.0, 0.4, 1.5, 9.0])
def test_factor(seed: int, factor: float | None) -> None:
    options = DecodeOptions(strategy="factor", factor=factor)
    found, f = llada(options, seed), 1.0 if factor is None else factor
    ranked = sorted((chance for _, chance in found.values()), reverse=True)
    count = 1
    while count < len(ranked) and ranked[count] >= 1 - f / (count + 2):
        count += 1
    if count == len(ranked) - 1:
        count += 1
    assert decided(options, seed, None) == best(found, count)


@pytest.mark.parametrize(
    ("ranked", "count"),
    [
        ([0.1], 1),
        ([0.1, 0.1], 2),  # the last two go together, however unsure
        ([0.1, 0.1, 0.1], 1),
        ([0.9, 0.7, 0.1], 3),  # as do the last one and all that pass in front of it
        ([0.9, 0.7, 0.1, 0.1], 2),
        ([0.9, 0.1, 0.1, 0.1], 1),
    ],
)
def test_the_last_two_places_of_a_block_go_together(ranked: list[float], count: int) -> None:
    confidence = torch.tensor([ranked], dtype=torch.float64)
    chosen = within_factor(confidence, torch.ones_like(confidence, dtype=torch.bool), 1.0)
    assert int(chosen.sum()) == count


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_dynamic(seed: int, threshold: float | None) -> None:
    options = DecodeOptions(strategy="dynamic", threshold=threshold)
    found, above = llada(options, seed), 0.85 if threshold is None else threshold
    sure = {c: token for c, (token, chance) in found.items() if chance > above}
    assert decided(options, seed, 2) == (sure if len(sure) >= 2 else best(found, 2))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("strategy", ["static", "dynamic"])
def test_sdar_is_sure_by_what_it_draws_from(seed: int, strategy: str) -> None:
    """After temperature, then the cut to the likeliest three, then that to the likeliest 0.6."""
    logits, _ = example(seed)
    options = DecodeOptions(strategy=strategy, temperature=2.0, top_k=3, top_p=0.6)
    found = stepwise(options).propose(logits, places(WIDTH, seed))
    for row, token, sure in zip(
        logits.tolist(), found.tokens.tolist(), found.confidence.tolist(), strict=True
    ):
        order = sorted(range(WORDS), key=lambda word: -row[word])[:3]
        chances = softmax([row[word] / 2 for word in order])
        kept = [i for i in range(3) if sum(chances[:i]) <= 0.6]
        total = sum(chances[i] for i in kept)
        assert token in [order[i] for i in kept]
        assert sure == pytest.approx(chances[order.index(token)] / total)


MEASURES = {"maskgit-plus": "probability", "topk-margin": "margin", "entropy": "entropy"}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("strategy", list(MEASURES))
@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.3, "top_p": 0.6},
        {"temperature": 0.5, "top_k": 2},
        {"temperature": 2.0, "top_p": 0.9, "top_k": 3, "alg_temperature": 0.4},
    ],
)
def test_dream(seed: int, strategy: str, sampling: dict[str, float]) -> None:
    options = DecodeOptions.model_validate({"strategy": strategy, **sampling})
    found = dream(options, seed, MEASURES[strategy])
    if options.alg_temperature:
        uniform = places(len(found), seed).draws("order", 1)[:, 0].tolist()
        found = {
            c: (token, sure / options.alg_temperature - math.log(-math.log(u)))
            for (c, (token, sure)), u in zip(found.items(), uniform, strict=True)
        }
    assert decided(options, seed, 2) == best(found, 2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("chance", [0.0, 0.4, 1.0])
def test_origin(seed: int, chance: float) -> None:
    options = DecodeOptions(strategy="origin", temperature=0.7)
    found = dream(options, seed, "probability")
    draws = places(len(found), seed).draws("order", 1)[:, 0].tolist()
    due = {c: found[c][0] for c, draw in zip(found, draws, strict=True) if draw < chance}
    assert decided(options, seed, chance) == due


@pytest.mark.parametrize(("top_p", "top_k", "kept"), [
    (None, None, 4), (1.0, None, 4), (0.5, None, 2), (0.49, None, 1), (0.01, None, 1),
    (None, 1, 1), (None, 3, 4), (0.9, 1, 1), (None, 9, 4),
])  # fmt: skip
def test_tail_by_hand(top_p: float | None, top_k: int | None, kept: int) -> None:
    """Of 0.5, 0.3, 0.1, 0.1: the last two are equal, so three of them are four."""
    logits = torch.tensor([[0.1, 0.5, 0.1, 0.3]], dtype=torch.float64).log()
    left = cut_tail(logits, top_p, top_k)[0].isfinite()
    assert int(left.sum()) == kept
    assert bool(left[1])


def test_drawing_places_is_without_replacement_from_the_softmax() -> None:
    """The chance to be first is the softmax of the confidence over the temperature."""
    options = DecodeOptions(strategy="maskgit-plus", alg_temperature=0.5)
    logits = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]], dtype=torch.float64).log()
    counts = [0, 0, 0]
    for seed in range(3000):
        sure = stepwise(options).propose(logits, places(3, seed)).confidence
        counts[int(sure.argmax())] += 1
    due = torch.tensor([0.9, 0.6, 0.5]).div(0.5).softmax(0)
    torch.testing.assert_close(torch.tensor(counts) / 3000, due, atol=0.03, rtol=0)


@pytest.mark.parametrize("strategy", ["low-confidence", "maskgit-plus"])
def test_both_samplers_draw_from_the_tempered_distribution(strategy: str) -> None:
    options = DecodeOptions.model_validate({"strategy": strategy, "temperature": 0.5})
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    count = 4000
    found = stepwise(options).propose(logits.expand(count, 4), places(count))
    share = found.tokens.bincount(minlength=4) / count
    due = (logits / 0.5).softmax(0).float()
    torch.testing.assert_close(share, due, atol=0.03, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_llada_draws_without_the_tail_and_is_as_sure_as_before(seed: int) -> None:
    """Two tokens are left to draw from; their probability is that of the whole vocabulary."""
    logits, _ = example(seed)
    options = DecodeOptions(temperature=5, top_k=2)
    found = stepwise(options).propose(logits, places(WIDTH, seed))
    best = logits.topk(2).indices
    assert bool((found.tokens[:, None] == best).any(1).all())
    assert not torch.equal(found.tokens, best[:, 0])
    due = logits.softmax(1).gather(1, found.tokens[:, None])[:, 0]
    assert torch.equal(found.confidence, due)
    greedy = DecodeOptions(temperature=5, top_p=1e-9)
    assert torch.equal(stepwise(greedy).propose(logits, places(WIDTH, seed)).tokens, best[:, 0])


def test_every_strategy_has_a_name_a_summary_and_a_source() -> None:
    assert len(BUILT_IN) == len(STRATEGIES)
    for kind in STRATEGIES:
        assert kind.source
        assert (kind.__doc__ or "").partition("\n")[0].endswith(".")


def test_every_shared_option_is_read_and_declared_where_it_acts() -> None:
    """A field of a strategy is a shared option or its own; what ``reads`` names, there is."""
    read = {name for kind in STRATEGIES for name in shared_options(kind)}
    assert read == set(SHARED)
    for kind in STRATEGIES:
        assert set(kind.reads) <= set(SHARED)
        assert needs_canvas(kind) or set(kind.model_fields) <= set(SHARED)
        counts = torch.tensor([3])
        if issubclass(kind, Stepwise):
            assert (kind().plan(counts, counts) is not None) == ("steps" in kind.reads)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [("threshold", "threshold", 0.9), ("dynamic", "threshold", 0.85), ("factor", "factor", 1.0)],
)
def test_options_come_from_the_run_from_the_text_or_are_the_strategys_own(
    text: str, field: str, value: float
) -> None:
    assert getattr(stepwise(DecodeOptions(strategy=text)), field) == value
    asked = DecodeOptions.model_validate({"strategy": text, field: 0.3, "top_k": 4})
    assert stepwise(asked).options() == {field: 0.3, "top-k": 4}
    written = DecodeOptions(strategy=f"{text}{{{field}=0.3 top-k=4}}")
    assert stepwise(written) == stepwise(asked)
    twice = DecodeOptions.model_validate({"strategy": f"{text}{{{field}=0.3}}", field: 0.3})
    with pytest.raises(QdcError, match=f"{field} is given both in the strategy and as an option"):
        make_strategy(twice)


class Formless(Strategy):
    """Says nothing of steps."""

    name = "formless"
    reads = ("block",)


def test_strategies_that_cannot_be_made() -> None:
    with pytest.raises(UnknownName, match="no strategy is called 'treshold'") as unknown:
        make_strategy(DecodeOptions(strategy="treshold"))
    assert unknown.value.help == "did you mean threshold?"
    with pytest.raises(InvalidPipeline, match="the strategy does not parse: expected a strategy"):
        make_strategy(DecodeOptions(strategy="{}"))
    with pytest.raises(InvalidPipeline, match="random has no option 'sharpness'"):
        make_strategy(DecodeOptions(strategy="random{sharpness=2}"))
    with pytest.raises(QdcError, match="does not say what its steps decide"):
        make_strategy(DecodeOptions(strategy="formless"), {**BUILT_IN, "formless": Formless})
    read = DecodeOptions(strategy="random", threshold=0.5)
    with pytest.raises(QdcError) as caught:
        make_strategy(read, {"random": BUILT_IN["random"], "threshold": BUILT_IN["threshold"]})
    assert caught.value.where == ("threshold has no effect on random; it is read by threshold",)
