"""The annotation of a model whose predictions were tuned towards the original's."""

from typing import ClassVar

from pydantic import Field

from qdc.ir.annotation import Annotation


class Distilled(Annotation):
    """What the predictions lost on samples that nothing was fitted to, before and after."""

    tag: ClassVar[str] = "distilled"
    before: float = Field(ge=0, allow_inf_nan=False)
    """Mean divergence from the original's predictions, nats a position."""
    after: float = Field(ge=0, allow_inf_nan=False)
    """As it is stored now; ``before`` if nothing better was found, and everything stayed."""
    positions: int = Field(ge=1)
    """Over which both are means."""
    numbers: int = Field(ge=0)
    """How many were tuned."""

    @property
    def improved(self) -> bool:
        """Whether the tuned numbers were kept."""
        return self.after < self.before

    def text(self) -> str:
        """``0.0312 to 0.0264 nats at 4,103 held-out positions   3,370 numbers``."""
        found = f"{self.before:.4g} to {self.after:.4g} nats" if self.improved else "nothing gained"
        return f"{found} at {self.positions:,} held-out positions   {self.numbers:,} numbers"
