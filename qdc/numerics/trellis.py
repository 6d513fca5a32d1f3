"""Trellis codes: rings of bits, in which every step decodes the window that ends there.

Source: QTIP (arXiv 2406.11235), its bitshift trellis with one number a step. A *state* is a window,
the newest bit lowest, and names a level. Each step moves the window on by as many bits as it takes
from the ring; QTIP takes equally many at each step, here rates between whole ones take in turn one
more and one less. The bits are a ring (tail-biting): the first windows reach back into its end, so
nothing is spent on a start. Levels follow from a rule:

- ``1mad``, QTIP's: the four bytes of ``34038481 s + 76625530`` modulo 2^32, added up, less 510, in
  units of 1/128.
- ``quadratic``, ours: the permutation ``q = a s^2 + b s`` modulo the number of states, ``a`` even
  and ``b`` odd, spreads them over the quantiles of a normal distribution: that of (q + 1/2) over
  the number of states, rounded to a unit of 1/256. The factors were searched for.
"""

from functools import lru_cache
from itertools import pairwise
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

Code = Literal["quadratic", "1mad"]
Window = Literal[8, 10, 12, 14, 16]
FACTORS: Final = {
    8: (0, 99),
    10: (338, 955),
    12: (720, 3031),
    14: (6048, 3341),
    16: (17320, 25111),
}
"""a and b of the quadratic code, by the bits of a window."""
UNITS: Final = {"quadratic": 256, "1mad": 128}
"""Levels are whole numbers over these, so that they are about normal, and exact in fp32."""
EIGHTHS: Final = 8
"""A rate is counted in eighths of a bit."""
FALL: Final = 0.274
"""What one bit more leaves of the error: from 0.278 at 1 bit to 0.0057 at 4, window 10."""
SCRATCH: Final = 1 << 17
"""Costs that a search compares at a time, which should lie in a cache."""
HISTORY: Final = 1 << 24
"""Costs that it keeps."""
TOGETHER: Final = 16
"""Sequences that are searched at a time, whatever their costs take."""
BARRED: Final = 1e30
"""Cost of a state that must not be passed."""


@lru_cache(maxsize=8)
def levels(code: Code, window: int, device: torch.device) -> Tensor:
    """Compute what each state stands for, f32[2^window]."""
    state = torch.arange(1 << window)
    if code == "1mad":
        word = (state * 34038481 + 76625530) & 0xFFFFFFFF
        whole = torch.stack([(word >> shift) & 0xFF for shift in (0, 8, 16, 24)]).sum(0) - 510
    else:
        square, linear = FACTORS[window]
        place = (square * state * state + linear * state) % len(state)
        quantiles = torch.special.ndtri((place.double() + 0.5) / len(state))
        whole = (quantiles * UNITS[code]).round()
    return (whole.double() / UNITS[code]).float().to(device)


def bits_of_steps(steps: int, rate: int) -> tuple[int, ...]:
    """Bits that each step takes at ``rate`` eighths a step: as even as whole bits can be."""
    ends = [step * rate // EIGHTHS for step in range(steps + 1)]
    return tuple(end - start for start, end in pairwise(ends))


class Trellis(NamedTuple):
    """The code of a ring.

    Attributes:
        levels: f32[2^window], of each state.
        window: Bits of a state.
        taken: Bits that each step takes, at least 1; together at least ``window``.
    """

    levels: Tensor
    window: int
    taken: tuple[int, ...]

    @property
    def kept(self) -> int:
        """Floats that a search keeps of each sequence."""
        return sum(len(self.levels) >> bits for bits in self.taken)

    def search(self, targets: Tensor, counts: Tensor) -> Tensor:
        """Find rings near targets: an open search around the seam, then one of the whole ring.

        Args:
            targets: f32[steps, n].
            counts: f32[steps, n], 1, or 0 where any number will do.

        Returns:
            i64[steps, n], states; the best of all rings that pass the seam as the open search did.
        """
        parts = zip(self._split(targets), self._split(counts), strict=True)
        return torch.cat([self._search(*part) for part in parts], dim=1)

    def again(self, targets: Tensor, counts: Tensor, states: Tensor, seam: int) -> Tensor:
        """Find the best rings that pass one seam as these do.

        Args:
            targets: f32[steps, n].
            counts: f32[steps, n], as for ``search``.
            states: i64[steps, n], the rings that are there; none comes out worse than its own.
            seam: The step before which the window stays as it is.

        Returns:
            i64[steps, n].
        """
        turned = self.turned(seam)
        split = (self._split(part.roll(-seam, 0)) for part in (targets, counts, states))
        found = [turned._closed(x, c, s[-1]) for x, c, s in zip(*split, strict=True)]
        return torch.cat(found, dim=1).roll(seam, 0)

    def turned(self, steps: int) -> "Trellis":
        """The same ring, begun so many steps later."""
        return self._replace(taken=self.taken[steps:] + self.taken[:steps])

    def _split(self, part: Tensor) -> tuple[Tensor, ...]:
        room = min(HISTORY // self.kept, SCRATCH // len(self.levels))
        return torch.split(part, max(TOGETHER, room), dim=1)

    def _search(self, targets: Tensor, counts: Tensor) -> Tensor:
        """Guess the window at the seam from the steps around it; eight windows a side are many."""
        steps = len(self.taken)
        around = min(steps // 2, -(-8 * self.window * steps // sum(self.taken)))
        turned = self.turned(steps - around)
        near = turned._replace(taken=turned.taken[: 2 * around])
        inputs = _inputs(
            targets.roll(around, 0)[: 2 * around], counts.roll(around, 0)[: 2 * around]
        )
        kept, costs = near._forward(inputs, None)
        states = near._back(inputs, kept, costs.argmin(0))
        return self._closed(targets, counts, states[around - 1])

    def _closed(self, targets: Tensor, counts: Tensor, last: Tensor) -> Tensor:
        """The best rings whose last states agree with ``last``, i64[n], but for the oldest bits."""
        shift = self.window - self.taken[0]
        before = last & ((1 << shift) - 1)
        inputs = _inputs(targets, counts)
        kept, costs = self._forward(inputs, before)
        ends = before + (torch.arange(1 << self.taken[0], device=last.device) << shift)[:, None]
        best = costs.gather(0, ends).argmin(0, keepdim=True)
        return self._back(inputs, kept, ends.gather(0, best)[0])

    def _terms(self) -> Tensor:
        """(x - level)^2 but for x^2, as factors of ``_inputs``: f32[2^window, 2]."""
        return torch.stack([self.levels.square(), -2 * self.levels], dim=1)

    def _forward(self, inputs: Tensor, before: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Find the least costs of coming to each state.

        Args:
            inputs: f32[steps, 2, n].
            before: i64[n], the bits before the first step; None for any.

        Returns:
            For each step f32[states without the bits it takes, n], the costs before it; and
            f32[2^window, n], the costs at the end.
        """
        states, n = len(self.levels), inputs.shape[2]
        terms, costs, kept = self._terms(), inputs.new_empty(states, n), []
        for step, bits in enumerate(self.taken):
            branches, groups = 1 << bits, states >> bits
            if step:
                least = torch.amin(costs.view(branches, groups, n), 0)
            elif before is None:
                least = inputs.new_zeros(groups, n)
            else:
                least = inputs.new_full((groups, n), BARRED).scatter_(0, before[None], 0.0)
            kept.append(least)
            torch.mm(terms, inputs[step], out=costs)
            costs.view(groups, branches, n).add_(least[:, None])
        return kept, costs

    def _back(self, inputs: Tensor, kept: list[Tensor], last: Tensor) -> Tensor:
        """Follow the least costs back from the last states, i64[n]: i64[steps, n].

        What led to a state is found by computing its few predecessors' costs once more, which is
        less work than to note it for all states on the way.
        """
        terms, column = self._terms(), torch.arange(len(last), device=last.device)
        branches = {
            bits: torch.arange(1 << bits, device=last.device)[:, None] << (self.window - bits)
            for bits in set(self.taken)
        }
        found, state = [last], last
        for step in range(len(self.taken) - 1, 0, -1):
            bits, earlier = self.taken[step], self.taken[step - 1]
            into = (state >> bits) + branches[bits]
            cost = (terms[into] * inputs[step - 1].T).sum(-1)
            cost += kept[step - 1][into >> earlier, column]
            state = into.gather(0, cost.argmin(0, keepdim=True))[0]
            found.append(state)
        return torch.stack(found[::-1])


def _inputs(targets: Tensor, counts: Tensor) -> Tensor:
    """What the terms are multiplied by, f32[steps, 2, n]."""
    return torch.stack([counts, counts * targets], dim=1)


def ring_bits(states: Tensor, taken: tuple[int, ...]) -> Tensor:
    """Take the bits of rings from their states.

    Args:
        states: i64[steps, n].
        taken: Bits of each step.

    Returns:
        u8[n, sum of taken], in the order in which windows pass them.
    """
    places = [(step, b) for step, bits in enumerate(taken) for b in range(bits - 1, -1, -1)]
    step, shift = torch.tensor(places, device=states.device).T
    bits: Tensor = (states[step] >> shift[:, None]) & 1
    return bits.to(torch.uint8).T.contiguous()


def ring_states(bits: Tensor, window: int, taken: tuple[int, ...]) -> Tensor:
    """Read the window of every step: undo ``ring_bits``.

    Args:
        bits: u8[n, sum of taken].
        window: Bits of a state, at most those of a ring.
        taken: Bits of each step.

    Returns:
        i32[n, steps].
    """
    around = torch.cat([bits[:, bits.shape[1] - window :], bits], dim=1)
    ends = torch.tensor(taken, device=bits.device).cumsum(0) + window - 1
    states = torch.zeros(len(bits), len(taken), dtype=torch.int32, device=bits.device)
    for age in range(window):
        states |= around[:, ends - age].int() << age
    return states
