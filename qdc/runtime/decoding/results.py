"""What decoding shows on its way, and what it gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """The state after a step. Prompts stand on the left, padded there, answers in the last columns.

    Rows are in the order of the prompts. A callback that raises stops the decoding.
    """

    tokens: Tensor
    """``i64[batch, T]`` on the CPU; the mask token where nothing is decided yet, and in a canvas of
    noise the most probable token."""
    masked: Tensor
    """``bool[batch, T]``: not decided yet."""
    step: int
    """Steps done so far."""
    steps: int | None
    """Steps in all, where that is known before the end; ends of sequence may save some."""
    forwards: int
    """Calls of the model so far."""
    drafts: bool = False
    """Whether tokens that are not decided are the model's best so far, and no mask tokens."""


Watch = Callable[[Snapshot], None]


@dataclass(frozen=True)
class Decoded:
    """Answers, and what they took."""

    tokens: Tensor
    """``i64[batch, T]`` on the CPU, laid out as in a ``Snapshot``."""
    answers: list[list[int]]
    """New tokens of each prompt, up to its first end."""
    written: int
    """Positions that were decided, over all rows; what an early end left out is not counted."""
    steps: int
    """Denoising steps, which all rows take together."""
    forwards: int
    """Calls of the model."""
    seconds: float
    cache_bytes: int = 0
    """Most bytes of keys and values that were kept at a time; 0 without a cache."""
    cache_plain_bytes: int = 0
    """What these would take as they were computed: more, where they are kept as codes."""

    @property
    def tokens_per_second(self) -> float:
        """Positions decided in a second, over all rows."""
        return self.written / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Positions decided in a step, over all rows."""
        return self.written / self.steps if self.steps else 0.0


def answers(tokens: Tensor, length: int, ends: Sequence[int]) -> list[list[int]]:
    """The last ``length`` columns of ``i64[batch, T]``, each row up to its first end."""
    return [_cut(row, ends) for row in tokens[:, -length:].tolist()]


def _cut(answer: list[int], ends: Sequence[int]) -> list[int]:
    place = next((place for place, token in enumerate(answer) if token in ends), len(answer))
    return answer[:place]
