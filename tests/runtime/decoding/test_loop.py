"""The loop: step traces by hand, ends, guidance, snapshots, refusals."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import QdcError
from qdc.runtime.decoding.llada import LladaSampler
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.results import Snapshot
from tests.support.decoding import EOS, MASK, Table, facts, probabilities

M = MASK
PROMPT = [5]
ANSWER = probabilities(
    [
        # 0    1     2     3     4     5
        [0.1, 0.5, 0.1, 0.1, 0.1, 0.1],  # the prompt's own place
        [0.0, 0.6, 0.28, 0.04, 0.04, 0.04],  # 2, sure by 0.7 once the mask is left out
        [0.0, 0.0, 0.05, 0.9, 0.05, 0.0],  # 3, by 0.9
        [0.0, 0.0, 0.2, 0.0, 0.8, 0.0],  # 4, by 0.8
        [0.0, 0.5, 0.0, 0.0, 0.1, 0.4],  # 5, by 0.8
    ]
).clamp(min=-50)


def trace(options: DecodeOptions, logits: Tensor = ANSWER, shift: int = 0) -> list[list[int]]:
    """The answer as the model saw it at each step, and at the end."""
    table = Table(logits)
    found = decode(table, [PROMPT], options, facts(logits_shift=shift))
    return [row[0][1:] for row in table.seen] + found.tokens[:, 1:].tolist()


def test_llada_by_hand() -> None:
    """Two steps of two: 3 by 0.9, then 4 before 5, both 0.8 sure, for it stands on the left."""
    assert trace(DecodeOptions(length=4, steps=2)) == [
        [M, M, M, M],
        [M, 3, 4, M],
        [2, 3, 4, 5],
    ]


def test_llada_in_blocks_by_hand() -> None:
    """The first two places before the last two, one a step."""
    assert trace(DecodeOptions(length=4, steps=4, block=2)) == [
        [M, M, M, M],
        [M, 3, M, M],
        [2, 3, M, M],
        [2, 3, 4, M],
        [2, 3, 4, 5],
    ]


def test_threshold_by_hand() -> None:
    """0.75 decides three at once, the best one remains."""
    options = DecodeOptions(length=4, strategy="threshold", threshold=0.75)
    assert trace(options) == [[M, M, M, M], [M, 3, 4, 5], [2, 3, 4, 5]]


def test_dream_by_hand() -> None:
    """Logits one column to the left; of 4 places in 3 steps, 1, then int(3 * 0.4995) = 1, then 2.

    Times are 1, 0.667, 0.334 and 0.001: 4 * 0.333 is 1.33, 3 * (1 - 0.334 / 0.667) is 1.498.
    """
    shifted = torch.cat((ANSWER[1:], ANSWER[:1]))
    options = DecodeOptions(length=4, steps=3, strategy="maskgit-plus")
    assert trace(options, shifted, shift=1) == [
        [M, M, M, M],
        [M, 3, M, M],
        [M, 3, 4, M],
        [2, 3, 4, 5],
    ]


def test_dream_entropy_by_hand() -> None:
    """Place 3 has two tokens of 0.2 and 0.8, place 4 too, place 2 is the surest, place 1 the last.

    Four steps of Dream's times take 0, 1, 1 and 2 places: 4 * 0.2498 is below 1. Where nothing
    is decided the model is not asked.
    """
    shifted = torch.cat((ANSWER[1:], ANSWER[:1]))
    options = DecodeOptions(length=4, steps=4, strategy="entropy")
    assert trace(options, shifted, shift=1) == [
        [M, M, M, M],
        [M, 3, M, M],
        [M, 3, 4, M],
        [2, 3, 4, 5],
    ]


def test_the_mask_is_never_written() -> None:
    sure = probabilities([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]] * 5).clamp(min=-60)
    sure[:, 4] += 1
    for strategy in ("low-confidence", "entropy", "threshold", "origin"):
        options = DecodeOptions.model_validate({"length": 4, "strategy": strategy})
        assert trace(options, sure)[-1] == [4, 4, 4, 4]


ENDING = torch.full((9, 6), -9.0)
for _place, _token in enumerate((5, 2, 3, EOS, 4, 2, 3, 4, 2)):
    ENDING[_place, _token] = 9.0


def test_blocks_behind_an_end_are_left_out() -> None:
    """The answer ends in the second of four blocks; both ways it is the same."""
    found = {}
    for early in (True, False):
        table = Table(ENDING)
        options = DecodeOptions(length=8, block=2, stop_early=early)
        found[early] = decode(table, [[5], [5]], options, facts(eos=EOS, ends=(EOS,)))
        assert found[early].forwards == len(table.seen) == (4 if early else 8)
        assert found[early].answers == [[2, 3], [2, 3]]
    assert found[True].tokens[0].tolist() == [5, 2, 3, 0, 4, 0, 0, 0, 0]
    assert found[False].tokens[0].tolist() == [5, 2, 3, 0, 4, 2, 3, 4, 2]
    assert (found[True].written, found[False].written) == (8, 16)
    assert found[True].tokens_per_step == 2


def test_rows_end_one_by_one() -> None:
    """The second prompt is an end itself, which ends nothing; its answer has none."""

    def model(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        logits = ENDING[None, : tokens.shape[1]].repeat(len(tokens), 1, 1)
        logits[tokens[:, 0] == EOS, 3] = ENDING[1]
        return logits

    options = DecodeOptions(length=8, block=2)
    found = decode(model, [[5], [EOS]], options, facts(eos=EOS, ends=(EOS,)))
    assert found.answers == [[2, 3], [2, 3, 2, 4, 2, 3, 4, 2]]
    assert found.forwards == 8


def test_ends_are_forbidden_or_late() -> None:
    ends = facts(eos=EOS, ends=(EOS, 4))
    options = DecodeOptions(length=8, forbid_eos=True)
    assert EOS not in decode(Table(ENDING), [[5]], options, ends).tokens
    seen: list[Snapshot] = []
    options = DecodeOptions(length=8, late_eos=True)
    decode(Table(ENDING), [[5]], options, ends, seen.append)
    order = [int((a.masked[0] & ~b.masked[0]).nonzero()) for a, b in zip(seen, seen[1:])]  # noqa: B905, RUF007
    assert order[-3:] == [3, 4, 7]
    with pytest.raises(QdcError, match="no end of sequence to forbid or to delay"):
        decode(Table(ENDING), [[5]], options, facts())


def test_guidance_by_hand() -> None:
    """Logits l_u + (w + 1)(l_c - l_u), where the prompt of the second call is masked."""
    asked: list[list[list[int]]] = []

    def model(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        asked.append(tokens.tolist())
        logits = torch.zeros(len(tokens), 2, 6)
        logits[:, 1, 2] = 1.0
        logits[tokens[:, 0] == 5, 1, 3] = 0.6
        return logits

    def answer(weight: float) -> list[int]:
        return decode(model, [[5]], DecodeOptions(length=1, cfg=weight), facts()).answers[0]

    assert answer(0.0) == [2]
    assert asked == [[[5, M]]]
    assert answer(0.5) == [2]  # 1.5 * 0.6 is 0.9
    assert asked[1:] == [[[5, M], [M, M]]]
    assert answer(1.0) == [3]  # 2 * 0.6 is 1.2


def test_snapshots() -> None:
    """Each step shows prompts and answers in their columns, and what is still open."""
    seen: list[Snapshot] = []
    options = DecodeOptions(length=4, steps=2)
    logits = ANSWER.repeat(2, 1)
    found = decode(Table(logits), [[5], [4, 3, 2]], options, facts(eos=EOS), seen.append)
    assert [(s.step, s.steps, s.forwards) for s in seen] == [(1, 2, 1), (2, 2, 2)]
    assert all(s.tokens.shape == s.masked.shape == (2, 7) for s in seen)
    assert [int(s.masked.sum()) for s in seen] == [4, 0]
    assert bool((seen[0].tokens[seen[0].masked] == MASK).all())
    assert seen[0].tokens[:, :3].tolist() == [[EOS, EOS, 5], [4, 3, 2]]
    assert torch.equal(seen[-1].tokens, found.tokens)
    assert found.answers == found.tokens[:, 3:].tolist()


def test_a_watch_that_raises_stops() -> None:
    class Cancelled(Exception):
        pass

    def watch(state: Snapshot) -> None:
        if state.step == 2:
            raise Cancelled

    table = Table(ANSWER)
    with pytest.raises(Cancelled):
        decode(table, [PROMPT], DecodeOptions(length=4), facts(), watch)
    assert len(table.seen) == 2


def test_seeds() -> None:
    """The seed of a row decides, not its place in the batch; another seed writes another answer."""
    flat = torch.zeros(17, 6)
    options = DecodeOptions(length=16, temperature=1, seed=5)

    def answers(count: int, seeds: list[int] | None = None) -> list[list[int]]:
        return decode(Table(flat), [PROMPT] * count, options, facts(), seeds=seeds).answers

    (five,) = answers(1)
    assert answers(2) == [five, five]
    six, again, large = answers(3, [6, 5, 5 + (1 << 32)])
    assert again == five
    assert len({*map(tuple, (five, six, large))}) == 3
    with pytest.raises(QdcError, match="found 1 seeds for 2 prompts"):
        answers(2, [1])


def test_refused() -> None:
    table, options = Table(ANSWER), DecodeOptions(length=4)
    with pytest.raises(QdcError, match="found no prompt"):
        decode(table, [], options, facts())
    with pytest.raises(QdcError, match="a prompt of 2 tokens and an answer of 4 are 6"):
        decode(table, [[5], [5, 5]], options, facts(max_length=5))
    with pytest.raises(QdcError, match="found token 6, and the model knows 6 tokens"):
        decode(table, [[6]], options, facts())
    with pytest.raises(QdcError, match="blocks of 3 do not divide"):
        decode(table, [[5]], DecodeOptions(block=3), facts(attention_block=4, max_length=999))
    with pytest.raises(QdcError, match="the cache 'dual' needs a model that is computed in parts"):
        decode(table, [[5]], DecodeOptions(length=4, cache="dual"), facts())
    with pytest.raises(QdcError, match="the logits of 4 of 4 masked positions are not finite"):
        decode(Table(torch.full((5, 6), math.nan)), [[5]], options, facts())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"strategy": "threshold", "steps": 4}, "steps has no effect on threshold"),
        ({"strategy": "entropy", "threshold": 0.5}, "threshold has no effect on entropy"),
        ({"alg_temperature": 0.5}, "alg_temperature has no effect on low-confidence"),
        ({"strategy": "origin", "late_eos": True}, "late_eos has no effect on origin"),
        ({"apd_mixture": 0.5}, "apd_mixture has no effect on low-confidence; it is read by apd"),
        ({"strategy": "apd", "block": 4}, "block has no effect on apd; it is read by low-conf"),
        ({"strategy": "apd", "cache": "dual"}, "apd has its own window"),
        ({"strategy": "greedy"}, "no strategy is called 'greedy'"),
    ],
)
def test_options_act_on_the_strategy_or_are_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(QdcError) as caught:
        decode(Table(ANSWER), [PROMPT], DecodeOptions.parse(length=4, **fields), facts())
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"strategy": "x" * 257}, "strategy: string should have at most 256 characters"),
        ({"temperature": math.nan}, "temperature: input should be"),
        ({"temperature": 5e-324}, "temperature: give 0, or at least 1e-100"),
        ({"strategy": "entropy", "alg_temperature": 1e-300}, "alg_temperature: give 0, or at"),
        ({"length": 0}, "length: input should be greater"),
        ({"words": 1}, "no option is called 'words'; "),
    ],
)
def test_values_that_no_strategy_takes_are_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError):
        DecodeOptions.model_validate(fields)
    with pytest.raises(QdcError) as caught:
        DecodeOptions.parse(**fields)
    assert reason in str(caught.value)


def test_a_default_that_is_written_out_is_no_mistake() -> None:
    options = DecodeOptions.parse(
        strategy="threshold", steps=None, alg_temperature=0.0, length=4, threshold=0.75
    )
    assert len(trace(options)) == 3


class Idle(LladaSampler):
    """Decides nothing, or less than it plans."""

    name = "idle"
    planned: bool = False

    def plan(self, counts: Tensor, steps: Tensor) -> Tensor | None:
        return super().plan(counts, steps) if self.planned else None

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        return torch.zeros_like(open_places)


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        ("idle", "the strategy idle decides nothing, and 4 places are open"),
        ("idle{planned=true}", "the strategy idle has planned 4 steps, and places are open"),
    ],
)
def test_a_strategy_that_leaves_places_open_is_refused(strategy: str, reason: str) -> None:
    options = DecodeOptions(strategy=strategy, length=4)
    with pytest.raises(QdcError, match=reason):
        decode(Table(ANSWER), [PROMPT], options, facts(), strategies={"idle": Idle})
