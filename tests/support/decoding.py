"""Models that are tables, and short ways to decode with them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qdc.numerics.noise import Places
from qdc.pipeline.strategybase import Stepwise
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.strategies import BUILT_IN

MASK, EOS = 1, 0
OF_MASKS = [name for name, kind in BUILT_IN.items() if issubclass(kind, Stepwise)]
"""Strategies that fill masks by the common loop."""
VOCABULARY = 6


def facts(**fields: object) -> DecodeFacts:
    """Facts of a toy with six tokens, of which 1 is the mask."""
    return DecodeFacts.model_validate(
        {"mask_token_id": MASK, "vocabulary": VOCABULARY, "max_length": 64, **fields}
    )


class Table:
    """Gives each position the same logits at each call, and keeps what it was shown."""

    def __init__(self, logits: Tensor) -> None:
        """Logits ``[T, vocabulary]``."""
        self.logits = logits
        self.seen: list[list[list[int]]] = []

    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """``i64[batch, T] -> [batch, T, vocabulary]``."""
        self.seen.append(tokens.tolist())
        return self.logits[None, : tokens.shape[1]].repeat(len(tokens), 1, 1)


def probabilities(rows: Sequence[Sequence[float]]) -> Tensor:
    """Logits with these probabilities: ``[T, vocabulary]``."""
    return torch.tensor(rows, dtype=torch.float64).log()


def places(count: int, seed: int = 3, step: int = 5) -> Places:
    """Places of one row, from position 10 on."""
    return Places([seed] * count, range(10, 10 + count), step)
