"""What each step of a block decides in each row, its first place included where that goes alone.

Where logits are shifted, the first place of a block is predicted in front of the block. Fast-dLLM
decides it by itself, in the block's first step: on Dream with a cache, so that the window of the
further steps may begin with the block; in v2 at the start of each attention block, from the block
before it, which is finished. Source: Fast-dLLM, ``dream/model/generation_utils_block.py`` and
``generate`` of v2.
"""

import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.pipeline.strategybase import Stepwise
from qdc.runtime.decoding.canvas import Canvas
from qdc.runtime.decoding.facts import DecodeFacts


def goes_alone(canvas: Canvas, facts: DecodeFacts, cache: str, first: int) -> Tensor:
    """Rows whose block, beginning at the column ``first``, has its first place decided alone.

    Returns:
        ``bool[batch]``: the place is open, is not the first of the text, and is one of those above.
    """
    found = canvas.masked[:, first] & (canvas.positions[:, first] > 0)
    if not facts.logits_shift:
        return torch.zeros_like(found)
    if facts.attention_block is None:
        return found & (cache != "none")
    return found & (canvas.positions[:, first] % facts.attention_block == 0)


class Agenda:
    """The steps of one block; rows are those that are not finished."""

    def __init__(self, strategy: Stepwise, counts: Tensor, steps: Tensor, alone: Tensor) -> None:
        """Ask the strategy for its plan.

        Args:
            strategy: whose plan it is; of a strategy without one, confidence says all.
            counts: open places of the block, ``i64[rows]``.
            steps: steps of the block, ``i64[rows]``. A row that has one step decides all in it, if
                there is a plan.
            alone: rows whose first place is decided alone, in one of their steps, ``bool[rows]``.
        """
        self.name = strategy.name
        self.alone = alone
        self.plan = strategy.plan(counts, steps)
        if self.plan is None:
            return
        self.alone = alone & (steps > 1)
        if bool(self.alone.any()):
            less = self.alone.long()
            rest = strategy.plan(counts - less, steps - less)
            assert rest is not None
            one, none = torch.ones_like(rest[:1]), torch.zeros_like(rest[:1])
            self.plan = torch.where(self.alone, torch.cat((one, rest)), torch.cat((rest, none)))

    def amount(self, step: int) -> Tensor | None:
        """What the step may decide in each row, ``[rows]``; None where confidence says.

        Raises ``QdcError`` behind the last step, where a strategy has not decided what it planned.
        """
        if self.plan is None:
            return None
        if step < len(self.plan):
            return self.plan[step]
        raise QdcError(
            f"the strategy {self.name} has planned {len(self.plan)} steps, and places are open "
            "behind the last one",
            help="plan as many places as there are, and choose as many as are planned",
        )

    def restrict(self, chosen: Tensor, step: int) -> Tensor:
        """Choose the first place alone where it goes alone, ``bool[rows, columns]``."""
        if step or not bool(self.alone.any()):
            return chosen
        first = torch.zeros_like(chosen)
        first[:, 0] = True
        return torch.where(self.alone[:, None], first, chosen)

    @property
    def taken(self) -> int | None:
        """Steps that decide something in some row; None where confidence says."""
        return None if self.plan is None else int((self.plan > 0).any(1).sum())
