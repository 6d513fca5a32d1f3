"""Programs that share a tile count themselves in memory that a layer has."""

import pytest
import torch

import tests.support.interpreter  # noqa: F401
from qdc.backends.triton import launch
from qdc.backends.triton.modules import PackedLinear
from qdc.backends.triton.tuning import SIZES, _candidates
from qdc.backends.triton.variants import CANDIDATES, Choice, default_choice
from tests.support.kernels import binary_layer


@pytest.fixture(scope="module")
def module() -> PackedLinear:
    return PackedLinear([binary_layer(1, 200, 64, 64, (2,)).part], torch.float16, "cpu")


def places(choice: Choice, tokens: int, padded_rows: int) -> int:
    variant = choice.variant
    return padded_rows // variant.rows * -(-tokens // variant.tokens)


@pytest.mark.parametrize("tokens", SIZES)
def test_no_choice_counts_beyond_the_end(module: PackedLinear, tokens: int) -> None:
    padded = module.planes.shape[1]
    tried = (default_choice(tokens, padded, 32), *_candidates(tokens, padded, 32))
    shared = [choice for choice in tried if choice.split > 1]
    assert all(places(choice, tokens, padded) <= module.arrivals.numel() for choice in shared)
    assert shared or tokens > 256


def test_more_tokens_than_were_measured_are_not_split(
    module: PackedLinear, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, ...], int]] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            return lambda *args, **options: seen.append((grid, options["SPLIT"]))

    monkeypatch.setattr(launch, "binary_linear", Kernel())
    variant = next(v for v in CANDIDATES if (v.rows, v.tokens) == (64, 16))
    for tokens in (256, 257):
        launch.run_binary(
            torch.zeros(tokens, 64, dtype=torch.float16),
            module.planes,
            module.row_scale,
            module.col_scale,
            module.pairs,
            module.singles,
            module.tiles,
            None,
            module.arrivals,
            64,
            200,
            Choice(variant, 2),
        )
    assert seen == [((4, 16, 2), 2), ((4, 17, 1), 1)]
