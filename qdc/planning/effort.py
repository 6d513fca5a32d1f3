"""How much time and memory a compile may take, in one word: its pipeline, samples and length."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from qdc.errors import QdcError, nearest

if TYPE_CHECKING:  # ``qdc --help`` answers without torch.
    from qdc.pipeline.plan import Plan

Level = Literal["low", "normal", "high"]


@dataclass(frozen=True)
class Effort:
    """What a level sets, wherever nothing else does."""

    passes: str
    samples: int | None = None
    """That of each pass, if not given."""
    length: int | None = None
    """Most tokens of a sample; that of each pass if not given. Shorter where the model is."""

    def preferred(self, longest: int | None = None) -> dict[str, object]:
        """Options for passes that have them; a model that takes ``longest`` tokens sets the length.

        Args:
            longest: tokens that the model takes, once it is known.
        """
        length = self.length
        if length is not None and longest is not None and length >= longest:
            length = None
        return {"samples": self.samples, "length": length}


EFFORTS: dict[Level, Effort] = {
    "low": Effort("default", 16, 512),
    "normal": Effort("default"),
    "high": Effort("best", 256),
}
"""``low`` ends within hours for 8 billion weights on a CPU; ``normal`` is every pass's own."""


def as_level(given: Any) -> Any:
    """A level, for a validator. Raises ``QdcError`` with the nearest."""
    if given not in get_args(Level):
        raise QdcError(f"--effort {given} is no effort", help=nearest(str(given), get_args(Level)))
    return given


def said(level: Level, plan: "Plan", given: frozenset[str]) -> str:
    """What was chosen, and by whom: one line of a summary.

    Args:
        level: the effort.
        plan: the pipeline that came of it.
        given: which of ``passes``, ``samples`` and ``length`` the user gave.
    """
    chosen = [] if "passes" in given else [f"pipeline {EFFORTS[level].passes}"]
    chosen += [
        word
        for name, words in (("samples", _samples), ("length", _length))
        for word in words(_values(plan, name))
        if name not in given
    ]
    asked = [f"--{name}" for name in ("passes", "samples", "length") if name in given]
    own = f"; {' and '.join(asked)} as given" if asked else ""
    nothing = "chooses nothing" if _values(plan, "samples") else "no pass calibrates"
    return f"{level}: {', '.join(chosen) or nothing}{own}"


def _values(plan: "Plan", name: str) -> list[int | None]:
    """What the passes that have the option were given, each value once."""
    steps = (step for step in plan.passes() if name in type(step).model_fields)
    return list(dict.fromkeys(getattr(step, name) for step in steps))


def _samples(values: list[int | None]) -> Iterator[str]:
    if values:
        yield " or ".join(f"{value:,}" for value in values if value is not None) + " samples"


def _length(values: list[int | None]) -> Iterator[str]:
    if values:
        texts = ("as long as the model takes" if v is None else f"of {v:,} tokens" for v in values)
        yield f"each {' or '.join(texts)}"
