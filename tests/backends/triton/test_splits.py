"""Programs that share a tile count themselves in memory that a layer has."""

import pytest
import torch

import tests.support.interpreter  # noqa: F401
from qdc.backends.triton import tuning
from qdc.backends.triton.modules import PackedLinear
from qdc.backends.triton.tuning import SIZES, MeasuredChoice, Tuning, choose, key
from qdc.backends.triton.variants import CANDIDATES, Choice, default_choice
from tests.support.kernels import binary_layer

PADDED = 256
"""Outputs of the layer, 200, padded to whole tiles."""


@pytest.fixture(scope="module")
def places() -> int:
    layer = binary_layer(1, 200, 64, 64, (2,))
    return PackedLinear([layer.part], torch.float16, "cpu").arrivals.numel()


def counters(choice: Choice, tokens: int) -> int:
    """Tiles of outputs that programs share, each of which has its counter."""
    if choice.split == 1:
        return 0
    variant = choice.variant
    return PADDED // variant.rows * -(-tokens // variant.tokens)


@pytest.mark.parametrize("tokens", SIZES)
def test_no_choice_counts_beyond_the_end(places: int, tokens: int) -> None:
    tried = (default_choice(tokens, PADDED, 32), *tuning._candidates(tokens, PADDED, 32))
    assert all(counters(choice, tokens) <= places for choice in tried)
    assert tokens > 256 or any(choice.split > 1 for choice in tried)


def test_a_measured_split_is_left_out_where_it_does_not_fit(
    places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = next(v for v in CANDIDATES if (v.rows, v.tokens) == (64, 16))
    entry = MeasuredChoice(variant=variant, split=2, microseconds=1.0)
    found = Tuning(device="", triton="")
    for tokens in SIZES:
        found.entries[key(tokens, PADDED, 64, 2, torch.float16)] = entry
    monkeypatch.setattr(tuning, "_entries", lambda: found.entries)
    for tokens in (1, 256, 257, 4096, 100_000):
        choice = choose(tokens, PADDED, 64, 2, 32, torch.float16)
        assert choice == Choice(variant, 2 if tokens <= 256 else 1)
        assert counters(choice, tokens) <= places
