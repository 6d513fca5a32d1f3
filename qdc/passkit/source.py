"""Which tokens the statistics of a stage come from."""

from typing import NamedTuple


class Source(NamedTuple):
    """Which tokens the statistics of a stage come from."""

    masked: float
    """Share of them that is masked."""
    routed: int | None = None
    """Tokens of the expert, if they are too few and all tokens stand in; None otherwise."""
    left_out: int = 0
    """Tokens of the samples that count nothing, padding aside."""
    tokens: int = 0
    """Tokens that count."""

    def counted(self, added: int) -> int:
        """Tokens that count, of a moment to which so many were added."""
        return self.tokens if self.left_out else added

    @property
    def pooled(self) -> bool:
        """Whether the expert is fed with all tokens."""
        return self.routed is not None
