"""What a decoding strategy is: it proposes tokens, and says which of them a step decides.

It shares the form of passes: options are fields, ``str`` rebuilds it. A field with the name of an
option that all strategies share, as ``temperature``, takes that option's value; every other field
is an option of the strategy's own, ``name{option=value}``.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from qdc.numerics.noise import Places
from qdc.pipeline.passbase import Configured


class Proposal(NamedTuple):
    """For each open place a token, and how sure the strategy is of it."""

    tokens: Tensor
    """``i64[places]``."""
    confidence: Tensor
    """``f64[places]``; the larger, the surer."""


class Strategy(Configured, ABC):
    """Whatever stands in the list of strategies under a name.

    The first line of the docstring is the summary that ``qdc strategies`` prints. A strategy of
    steps is a ``Stepwise``; ``apd`` is none, for it has a loop of its own.
    """

    source: ClassVar[str] = ""
    """The paper or the code that it is from, and what it is called there."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Shared options that act on it without being a field of it, by their names in Python."""


class Stepwise(Strategy):
    """Decides some of the open places of a block in each step, until none is open.

    It sees the open places of the block alone, and keeps nothing from step to step. Whatever is
    drawn, is drawn by ``propose``: from ``Places``, so that an answer depends on its own seed.
    """

    reads: ClassVar[tuple[str, ...]] = ("steps", "block", "late_eos")
    """Without ``steps`` where ``plan`` gives None, and without ``late_eos`` where ``choose`` does
    not go by the confidence: such an option is refused then."""

    @abstractmethod
    def plan(self, counts: Tensor, steps: Tensor) -> Tensor | None:
        """What each step may decide in each row, ``[steps, rows]``; None if confidence says.

        Args:
            counts: open places of the block, ``i64[rows]``.
            steps: steps of the block, ``i64[rows]``.
        """

    @abstractmethod
    def propose(self, logits: Tensor, places: Places) -> Proposal:
        """Propose a token for each open place.

        Args:
            logits: ``f64[places, vocabulary]``, finite or minus infinite; the mask has minus
                infinity.
            places: what noise may be drawn from, in the order of the logits.
        """

    @abstractmethod
    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose what the step decides, ``bool[rows, columns]``: without a plan, some open place.

        Args:
            confidence: of the proposals, ``f64[rows, columns]``; minus infinity where nothing is
                open, and -1e300 for ends that are to come last.
            open_places: ``bool[rows, columns]``.
            amount: this step's row of the plan, ``[rows]``; None without a plan.
        """
