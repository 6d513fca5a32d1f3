"""States of denoising trajectories, drawn with fixed shares from stretches of the way.

Source: DLLMQuant (arXiv 2508.14090), temporal-mask adaptive sampling (TMAS). A trajectory is cut
into equal stretches, by the share of its places that are decided or by its steps. Each stretch
gives its share of all states, more at the two ends; within a stretch they lie evenly. Every state
is one that the sampler goes through and hands to the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.ir.calibration_use import SampledStates
from qdc.passkit.geometry import Masked
from qdc.passkit.predictor import Predictor
from qdc.passkit.trajectory import Sampler, Trajectories, trajectories

SHARES = (0.3, 0.2, 0.2, 0.3)
PROMPT = 0.25
"""Share of a sample that the sampler is given, where the text has no prompts of its own."""
Way = Literal["ratio", "step"]
"""What measures how far a trajectory has come."""


def quotas(count: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers of these shares that add up to ``count``, by largest remainders.

    None is further from its share than one.
    """
    exact = [count * share for share in shares]
    found = [int(amount) for amount in exact]
    # Rounded, so that equal remainders stay equal however they were computed.
    rest = sorted(range(len(shares)), key=lambda k: (-round(exact[k] - found[k], 9), k))
    for k in rest[: count - sum(found)]:
        found[k] += 1
    return tuple(found)


@dataclass(frozen=True)
class Aims:
    """Where on its way each state is to be taken: 0 is the start, 1 the end."""

    stretch: Tensor
    """``i64[states]``: the stretch that it stands for."""
    way: Tensor
    """``f64[states]``."""

    @classmethod
    def of(cls, states: int, shares: Sequence[float]) -> "Aims":
        """Spread so many states over the stretches, and evenly within each.

        Neighbours are of different stretches, so several states of one trajectory are spread too.
        """
        found = []
        for k, quota in enumerate(quotas(states, shares)):
            for number in range(quota):
                middle = (number + 0.5) / quota
                found.append((middle, k, (k + middle) / len(shares)))
        found.sort()
        stretch = torch.tensor([k for _, k, _ in found], dtype=torch.int64)
        return cls(stretch, torch.tensor([way for *_, way in found], dtype=torch.float64))


@dataclass(frozen=True)
class Tmas:
    """What is sampled, and how."""

    sampler: Sampler
    shares: tuple[float, ...] = SHARES
    way: Way = "ratio"
    per_trajectory: int = 1
    """States taken of each trajectory."""

    def foreseen(self, rows: int, strategy: str) -> SampledStates:
        """What is asked for of so many trajectories."""
        return SampledStates(
            strategy=strategy,
            way=self.way,
            trajectories=rows,
            asked=quotas(rows * self.per_trajectory, self.shares),
        )

    def aims(self, rows: int) -> Aims:
        """Where each state is to be taken; those of one trajectory stand side by side."""
        return Aims.of(rows * self.per_trajectory, self.shares)

    def furthest(self, rows: int) -> Tensor:
        """How far each trajectory is followed, ``f64[rows]``."""
        if self.way == "step":
            return torch.ones(rows, dtype=torch.float64)
        return self.aims(rows).way.view(rows, -1).amax(1)


def sampled(
    predictor: Predictor,
    clean: Tensor,
    maskable: Tensor,
    tmas: Tmas,
    batch: int,
    segments: Tensor | None = None,
) -> tuple[Masked, SampledStates]:
    """Roll every sample out and take its states.

    Args:
        predictor: the original model.
        clean: ``i64[rows, length]``; behind the prompt only its length counts.
        maskable: ``bool[rows, length]``: what the sampler writes.
        tmas: what is sampled.
        batch: samples computed at once.
        segments: ``i64[rows, length]``: which positions see each other; None if all of a row do.

    Returns:
        Tokens ``i64[rows * per_trajectory, length]`` with what is masked, and what was drawn.

    Raises:
        InvalidCalibration: a sample leaves the sampler nothing to write.
        QdcError: the sampler does not fit the model.
    """
    empty = int((~maskable.any(1)).sum())
    if empty:
        raise InvalidCalibration(
            f"{empty} of {len(clean)} samples leave the sampler nothing to write",
            help="lower prefix, or raise the length of samples",
        )
    rows, furthest, places = len(clean), tmas.furthest(len(clean)), maskable.sum(1)

    def enough(decided: Tensor, steps: Tensor) -> Tensor:
        return decided >= furthest * places

    found = trajectories(predictor, clean, maskable, tmas.sampler, enough, batch, segments)
    aims = tmas.aims(rows)
    chosen, drawn = choose(found, aims, len(tmas.shares), tmas.way)
    row = torch.arange(rows).repeat_interleave(tmas.per_trajectory)
    use = tmas.foreseen(rows, tmas.sampler.text(predictor.graph.model))
    counts = torch.bincount(drawn, minlength=len(tmas.shares)).tolist()
    different = len(set(zip(row.tolist(), chosen.tolist(), strict=True)))
    use = use.model_copy(
        update={
            "drawn": tuple(counts),
            "strayed": int((drawn != aims.stretch).sum()),
            "repeated": len(row) - different,
            "sweeps": found.sweeps,
        }
    )
    return found.states(row, chosen, predictor.graph.model.mask), use


def choose(found: Trajectories, aims: Aims, stretches: int, way: Way) -> tuple[Tensor, Tensor]:
    """Take for each aim the nearest state of its stretch, or the nearest of all if it has none.

    Returns:
        The step that each state stands in front of, and the stretch that it lies in, ``i64[n]``.
    """
    rows = torch.arange(len(found.decided)).repeat_interleave(
        len(aims.way) // max(1, len(found.decided))
    )
    counts, places = found.counts(), (found.decided >= 0).sum(1, keepdim=True)
    step = torch.arange(counts.shape[1])
    steps = found.steps[:, None]
    # The sampler hands a state to the model as long as a place of it is open.
    real = (step <= steps) & (counts < places)
    done, whole = (counts, places) if way == "ratio" else (step.expand_as(counts), steps)
    stretch = (done * stretches).div(whole, rounding_mode="floor").clamp(max=stretches - 1)
    distance = (done.double() / whole)[rows] - aims.way[:, None]
    astray = (stretch[rows] != aims.stretch[:, None]).double()
    cost = (distance.abs() + 2 * astray).masked_fill(~real[rows], torch.inf)
    chosen = cost.argmin(1)
    return chosen, stretch[rows, chosen]
