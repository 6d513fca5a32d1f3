"""Infilling: what a gap is, and the order in which gaps are filled."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.errors import QdcError
from qdc.evaluation.infill import infill, parse_gaps

MASK = 1


def encode(text: str) -> list[int]:
    """One token a character."""
    return [ord(character) for character in text]


def test_parse() -> None:
    """Pieces keep their spaces; gaps may touch each other and either end."""
    tokens, masked = parse_gaps("<mask>a <mask><mask> b", encode, MASK, per_gap=2)
    assert tokens.tolist() == [[1, 1, 97, 32, 1, 1, 1, 1, 32, 98]]
    assert masked.tolist() == [[t == 1 for t in tokens[0].tolist()]]
    assert tokens.dtype == torch.int64
    assert masked.dtype == torch.bool
    assert parse_gaps("<mask>", encode, MASK)[0].tolist() == [[1]]


def test_parse_without_gap() -> None:
    """The error shows how a gap is written."""
    with pytest.raises(QdcError) as caught:
        parse_gaps("for i in range", encode, MASK)
    assert "found no gap to fill" in str(caught.value)
    assert "write <mask> where text is missing: for i <mask> range(10):" in str(caught.value)
    with pytest.raises(QdcError, match="found 0 tokens per gap, need at least 1"):
        parse_gaps("<mask>", encode, MASK, per_gap=0)


def table(tokens: Tensor) -> Tensor:
    """Five places, tokens 2 to 5: prefer ``2 + place % 4``, less surely from left to right.

    Place 0 depends on place 3: it wants token 5 once that one is filled. The mask is the favourite
    everywhere, which must not matter.
    """
    logits = torch.zeros(1, 5, 6)
    for place, sure in enumerate((1.0, 4.0, 3.0, 2.0, 2.0)):
        logits[0, place, 2 + place % 4] = sure
    if tokens[0, 3] != MASK:
        logits[0, 0, 5] = 9.0
    logits[..., MASK] = 50.0
    return logits


def trace(steps: int | None, start: list[int]) -> tuple[list[list[int]], list[int]]:
    """What the model saw at each step, and the end."""
    seen: list[list[int]] = []

    def model(tokens: Tensor) -> Tensor:
        seen.append(tokens[0].tolist())
        return table(tokens)

    tokens = torch.tensor([start])
    return seen, infill(model, tokens, tokens == MASK, MASK, steps)[0].tolist()


def test_trace_one_place_a_step() -> None:
    """By hand: places 1, 2, then 3 before 4 (equally sure), which makes place 0 sure; then 4."""
    seen, end = trace(None, [1, 1, 1, 1, 1])
    assert seen == [
        [1, 1, 1, 1, 1],
        [1, 3, 1, 1, 1],
        [1, 3, 4, 1, 1],
        [1, 3, 4, 5, 1],
        [5, 3, 4, 5, 1],
    ]
    assert end == [5, 3, 4, 5, 2]
    assert trace(99, [1, 1, 1, 1, 1]) == (seen, end)


def test_trace_of_two_steps() -> None:
    """Five places in two steps are three and two; place 0 learns of place 3 in the second."""
    seen, end = trace(2, [1, 1, 1, 1, 1])
    assert seen == [[1, 1, 1, 1, 1], [1, 3, 4, 5, 1]]
    assert end == [5, 3, 4, 5, 2]


def test_trace_of_one_step() -> None:
    """All at once, place 0 knows nothing of place 3."""
    assert trace(1, [1, 1, 1, 1, 1]) == ([[1, 1, 1, 1, 1]], [2, 3, 4, 5, 2])


@pytest.mark.parametrize(
    ("steps", "seen"),
    [
        (
            None,
            [[1, 1, 1, 1, 1], [1, 3, 1, 1, 1], [2, 3, 1, 1, 1], [2, 3, 4, 1, 1], [2, 3, 4, 5, 1]],
        ),
        (4, [[1, 1, 1, 1, 1], [2, 3, 1, 1, 1], [2, 3, 4, 1, 1], [2, 3, 4, 5, 1]]),
        (1, [[1, 1, 1, 1, 1], [2, 3, 1, 1, 1], [2, 3, 4, 5, 1]]),
    ],
)
def test_trace_of_blocks(steps: int | None, seen: list[list[int]]) -> None:
    """Blocks of two from the left; place 0 is filled before place 3 could teach it."""
    found: list[list[int]] = []

    def model(tokens: Tensor) -> Tensor:
        found.append(tokens[0].tolist())
        return table(tokens)

    tokens = torch.tensor([[1, 1, 1, 1, 1]])
    told: list[tuple[int, int]] = []
    filled = infill(model, tokens, tokens == MASK, MASK, steps, lambda *s: told.append(s), block=2)
    assert found == seen
    assert filled.tolist() == [[2, 3, 4, 5, 2]]
    assert told == [(step + 1, len(seen)) for step in range(len(seen))]


def test_visible_text_stays() -> None:
    """Given tokens are never touched, not even a mask token that is no gap."""
    tokens = torch.tensor([[4, 1, 1, 4, 7]])
    masked = torch.tensor([[False, True, False, False, True]])
    assert infill(table, tokens, masked, MASK).tolist() == [[4, 3, 1, 4, 2]]
    assert tokens.tolist() == [[4, 1, 1, 4, 7]]


def test_no_gap_is_no_work() -> None:
    """Without a gap the text comes back and the model rests."""
    tokens = torch.tensor([[4, 5]])
    assert infill(lambda _: torch.empty(0), tokens, tokens == MASK, MASK).tolist() == [[4, 5]]


@settings(max_examples=50, deadline=None)
@given(gaps=st.lists(st.booleans(), min_size=1, max_size=12), steps=st.integers(1, 14))
def test_gaps_alone_are_filled(gaps: list[bool], steps: int) -> None:
    """Whatever the steps: all gaps filled, nothing else changed, shares even and falling."""
    masked = torch.tensor([gaps])
    tokens = torch.full_like(masked, 3, dtype=torch.int64).masked_fill(masked, MASK)
    weights = torch.randn(12, 8, generator=torch.Generator().manual_seed(len(gaps)))
    open_places: list[int] = []
    told: list[tuple[int, int]] = []

    def model(seen: Tensor) -> Tensor:
        open_places.append(int((seen == MASK).sum()))
        return weights[None, : seen.shape[1]] + seen.sum() / 100

    filled = infill(model, tokens, masked, MASK, steps, lambda *step: told.append(step))
    assert torch.equal(filled[~masked], tokens[~masked])
    assert not (filled == MASK).any()
    ends = [*open_places[1:], 0] if open_places else []
    shares = [a - b for a, b in zip(open_places, ends, strict=True)]
    assert shares == sorted(shares, reverse=True)
    assert not shares or max(shares) - min(shares) <= 1
    rounds = min(steps, sum(gaps))
    assert told == [(step, rounds) for step in range(1, rounds + 1)]
    assert torch.equal(filled, infill(model, tokens, masked, MASK, steps))


def test_texts_together_are_filled_as_each_is_alone() -> None:
    tokens = torch.tensor([[4, MASK, MASK, 4, 2], [MASK, 4, MASK, MASK, MASK]])

    def each(texts: Tensor) -> Tensor:
        return torch.cat([table(text[None]) for text in texts])

    for steps in (None, 2):
        found = infill(each, tokens.clone(), tokens == MASK, MASK, steps)
        alone = [infill(each, row[None].clone(), row[None] == MASK, MASK, steps) for row in tokens]
        assert torch.equal(found, torch.cat(alone))


def test_refused() -> None:
    """No steps, gaps of another shape, or a model gone wrong."""
    tokens = torch.tensor([[1, 4]])
    with pytest.raises(QdcError, match="found 0 steps, need at least 1"):
        infill(table, tokens, tokens == MASK, MASK, steps=0)
    with pytest.raises(QdcError, match=r"tokens of shape \[1, 2\] and gaps of shape \[2, 2\]"):
        infill(table, tokens, (tokens == MASK).expand(2, 2), MASK)
    with pytest.raises(QdcError, match="the logits of 1 of 1 masked positions are not finite"):
        infill(lambda seen: torch.full((1, 2, 6), math.nan), tokens, tokens == MASK, MASK)
