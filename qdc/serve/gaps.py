"""Texts with gaps, as tokens: what stands where, and how it is read back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class GappedText:
    """A whole text, what the tokenizer puts around it included."""

    tokens: list[int]
    """The mask token in the gaps."""
    gaps: list[bool]
    """Which tokens are to be filled."""
    size: int
    """Tokens of each gap; gaps may touch each other."""
    before: int
    """Tokens in front that the tokenizer adds, which no reader is shown."""
    after: int
    """Such tokens behind."""

    @property
    def given(self) -> int:
        """Tokens that are not to be filled."""
        return len(self.tokens) - sum(self.gaps)

    def by_gap(self, values: Sequence[Item]) -> list[list[Item]]:
        """Of one value a token of the text, those of each gap."""
        inside = [value for value, open_ in zip(values, self.gaps, strict=True) if open_]
        return self.portions(inside)

    def portions(self, inside: Sequence[Item]) -> list[list[Item]]:
        """Of one value a place to fill, those of each gap."""
        return [list(inside[n : n + self.size]) for n in range(0, len(inside), self.size)]

    def filled(self, inside: Sequence[int]) -> list[int]:
        """The text without what is around it, with these tokens in its gaps."""
        rest = iter(inside)
        whole = [
            next(rest) if open_ else token
            for token, open_ in zip(self.tokens, self.gaps, strict=True)
        ]
        return whole[self.before : len(whole) - self.after]
