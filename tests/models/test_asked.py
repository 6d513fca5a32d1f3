"""Logits of positions that somebody reads are those of the whole text, and so is what is kept."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from qdc.errors import QdcError
from qdc.models.predictions import answers_asked, logits_at
from qdc.models.recalled import Recalled
from qdc.models.window import Window, through
from qdc.runtime.load import load_checkpoint
from tests.support.families import CASES, write_family

NAMES = ("llada", "dream", "llada-moe", "sdar", "llada2")
BATCH, LENGTH = 3, 11
ROWS, COLUMNS = torch.tensor([2, 0, 2, 2, 0]), torch.tensor([4, 10, 0, 4, 3])
"""Positions in no order, one of them twice, and none in the second row."""


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder = write_family(tmp_path_factory.mktemp("asked"), CASES[request.param])
    return load_checkpoint(folder, "cpu", torch.float32)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(2, 2048, (BATCH, LENGTH), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def without_derivatives() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_equal_those_of_the_whole_text(model: nn.Module, tokens: Tensor) -> None:
    assert answers_asked(model)
    whole = model(tokens)
    found = logits_at(model, tokens, ROWS, COLUMNS)
    torch.testing.assert_close(found, whole[ROWS, COLUMNS], atol=1e-5, rtol=0)
    every = torch.ones(BATCH, LENGTH, dtype=torch.bool).nonzero(as_tuple=True)
    found = logits_at(model, tokens, *every)
    torch.testing.assert_close(found, whole.flatten(0, 1), atol=1e-5, rtol=0)
    assert model(tokens).shape == whole.shape


def test_equal_them_in_a_window_with_padding(model: nn.Module, tokens: Tensor) -> None:
    starts = torch.tensor([0, 4, 2])[:, None]
    places = torch.arange(LENGTH)[None] - starts
    window = Window(places.clamp(min=0), places >= 0, keeps=False)
    rows, columns = torch.tensor([2, 0, 1, 2]), torch.tensor([9, 10, 5, 4])
    with through(window):
        whole = model(tokens)[rows, columns]
        found = logits_at(model, tokens, rows, columns)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)


def test_a_kept_state_gives_the_very_same_logits(model: nn.Module, tokens: Tensor) -> None:
    calls = []

    def counted(seen: Tensor) -> Tensor:
        calls.append(len(seen))
        found: Tensor = model(seen)
        return found

    class Wrapped:
        module, logits_shift = model, int(getattr(model, "logits_shift", 0))

        def __call__(self, seen: Tensor) -> Tensor:
            return counted(seen)

    kept = Recalled(Wrapped())
    first = logits_at(kept, tokens, ROWS, COLUMNS)
    assert torch.equal(first, logits_at(Wrapped(), tokens, ROWS, COLUMNS))
    assert torch.equal(first, logits_at(kept, tokens, ROWS, COLUMNS))
    assert (len(calls), kept.computed, kept.recalled) == (2, 1, 1)
    logits_at(kept, tokens.flip(0), ROWS, COLUMNS)
    logits_at(kept, tokens, ROWS, COLUMNS.flip(0))
    assert (kept.computed, kept.recalled) == (3, 1)


def test_nothing_is_kept_beyond_the_limit(model: nn.Module, tokens: Tensor) -> None:
    kept = Recalled(model, limit=100)
    first = logits_at(kept, tokens, ROWS, COLUMNS)
    assert torch.equal(first, logits_at(kept, tokens, ROWS, COLUMNS))
    assert (kept.computed, kept.recalled) == (2, 0)


def test_of_any_other_model_all_logits_are_computed(tokens: Tensor) -> None:
    table = torch.randn(LENGTH, 5, generator=torch.Generator().manual_seed(0))

    def other(seen: Tensor) -> Tensor:
        return table.expand(len(seen), -1, -1)

    assert torch.equal(logits_at(other, tokens, ROWS, COLUMNS), table[COLUMNS])
    with pytest.raises(QdcError, match=r"found logits of shape \[1, 11, 5\]"):
        logits_at(lambda seen: table[None], tokens, ROWS, COLUMNS)
