"""The empty prompt: nothing but masks, among which rounding must not choose."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdc.cli.models import open_runnable
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from tests.support.decoding import MASK, OF_MASKS, VOCABULARY, facts
from tests.support.families import CASES, write_family

PROMPTS = [[], [5, 6, 7, 8, 9], []]


@pytest.mark.parametrize("name", ["llada", "dream", "sdar"])
def test_the_answer_is_the_same_alone_and_in_a_batch(name: str, tmp_path: Path) -> None:
    opened = open_runnable(write_family(tmp_path / name, CASES[name]), "cpu", ())
    for strategy in OF_MASKS:
        for cache in ("none", "dual"):
            for temperature in (0.0, 1.0):
                options = DecodeOptions.model_validate(
                    {"length": 8, "strategy": strategy, "cache": cache, "temperature": temperature}
                )
                alone, *_ = decode(opened.module, [[]], options, opened.decoding).answers
                first, _, last = decode(opened.module, PROMPTS, options, opened.decoding).answers
                assert first == last == alone, (strategy, cache, temperature)


def noisy(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Equal logits up to rounding; the place that rounding favours depends on the batch."""
    logits = torch.arange(VOCABULARY, dtype=torch.float32).repeat(*tokens.shape, 1)
    logits[:, 1 + len(tokens), -1] += 1e-6
    return logits


@pytest.mark.parametrize("prompts", [[[]], [[], []]])
def test_ties_up_to_rounding_go_by_position(prompts: list[list[int]]) -> None:
    shown: list[Tensor] = []
    options = DecodeOptions(length=4)
    decode(noisy, prompts, options, facts(), lambda now: shown.append(now.masked.clone()))
    assert shown[0].tolist() == [[False, True, True, True]] * len(prompts)


def test_a_model_that_tells_places_apart_keeps_its_order() -> None:
    def favours(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        logits = torch.zeros(*tokens.shape, VOCABULARY)
        logits[:, 2, 3] = 5.0
        return logits

    shown: list[Tensor] = []
    options = DecodeOptions(length=4)
    found = decode(favours, [[]], options, facts(), lambda now: shown.append(now.masked.clone()))
    assert shown[0].tolist() == [[True, True, False, True]]
    assert MASK not in found.answers[0]
