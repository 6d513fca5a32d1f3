"""The published search of SBVR for coefficients of {0, 1} planes, one group after the other.

Source: arXiv 2509.18172 and its code as related-systems.md 3 and 18 describe it. Coefficients are
proposed as b + s r^k / range(r) for K powers of a negative r, and for up to six planes as all
combinations of evenly spaced numbers; the proposal of least squared error becomes a line of the
table. A later group takes the first line that is clearly better than the last groups were, and is
searched for only where none is. What one group finds decides what the next one looks at, so there
is no doing it for all rows at once.
"""

import math
from collections import deque

import torch
from torch import Tensor

from qdc.numerics.coefficienttable import CoefficientTable, line_errors, sorted_rows
from qdc.numerics.planegrid import Coefficients, plane_levels, stored_coefficients

RATIOS, BIASES, SCALES = 64, 40, 40
"""How many numbers of each kind are tried."""
SMALL_RATIOS, LARGE_RATIOS = (math.pi / 6, 0.94), (1.06, 2 * math.pi / 3)
LEAST_BIAS = 0.3
"""Bound of the biases at least; in units of the group's root mean square."""
QUANTILE, WIDEST = 0.95, 1.1
"""The scales go from twice this quantile of the signed weights to so much of their range."""
SPREAD, MOST_COMBINED = 1.4, 6
"""Combinations span so much of the weights' range, for up to so many planes."""
WARM_UP, FINER = 10, 1.2
"""Until the table has so many lines, and where it is hit often, the grids are so much finer."""
OFTEN = 0.6
CLEARLY, REMEMBERED = 0.99, 20
"""A line is taken if its error is below this share of the mean of so many last errors."""
DUPLICATE = 1e-4
"""Lines that differ by no more than this share of the larger are one."""
PROPOSALS = 1 << 15
"""Proposals that are tried together."""


class CoefficientSearch:
    """A table that grows with the groups of one layer."""

    def __init__(self, planes: int, lines: int) -> None:
        """Start without a line.

        Args:
            planes: K.
            lines: The most that the table may have.
        """
        self.planes, self.most = planes, lines
        self.table = torch.zeros(0, planes)
        self.levels = torch.zeros(0, 2**planes, dtype=torch.float64)
        self.errors: deque[float] = deque(maxlen=REMEMBERED)
        self.groups = self.hits = 0

    def place(self, block: Tensor) -> Tensor:
        """The line of each group, i64[n], of f32[n, g]; searched for in order."""
        self.table, self.levels = self.table.to(block.device), self.levels.to(block.device)
        return torch.tensor([self._place(group[None]) for group in block], device=block.device)

    def result(self) -> CoefficientTable:
        """The lines so far."""
        return CoefficientTable(Coefficients(self.table, None))

    def _place(self, group: Tensor) -> int:
        rows = sorted_rows(group)
        self.groups += 1
        errors = line_errors(rows, self.levels)[0] if len(self.table) else group.new_zeros(0)
        if len(self.table) >= WARM_UP:
            bound = CLEARLY * sum(self.errors) / len(self.errors)
            below = (errors < bound).nonzero()
            if len(below):
                self.hits += 1
                return self._accept(int(below[0]), float(errors[below[0]]))
        if len(self.table) == self.most:
            return self._accept(int(errors.argmin()), float(errors.min()))
        fine = len(self.table) < WARM_UP or self.hits > OFTEN * self.groups
        best: tuple[float, Tensor] | None = None
        for proposals in torch.split(
            proposed(group[0], self.planes, FINER if fine else 1), PROPOSALS
        ):
            found = line_errors(rows, _levels(proposals))[0]
            least = int(found.argmin())
            if best is None or float(found[least]) < best[0]:
                best = float(found[least]), proposals[least]
        assert best is not None
        falling = best[1].abs().argsort(descending=True, stable=True)
        line = stored_coefficients(best[1][falling][None], None).planes
        size = torch.maximum(self.table.abs(), line.abs())
        same = ((self.table - line).abs() <= DUPLICATE * size).all(1).nonzero()
        if len(same):
            return self._accept(int(same[0]), float(errors[same[0]]))
        self.table = torch.cat([self.table, line])
        self.levels = torch.cat([self.levels, _levels(line)])
        return self._accept(len(self.table) - 1, float(line_errors(rows, _levels(line))))

    def _accept(self, line: int, error: float) -> int:
        self.errors.append(error)
        return line


def proposed(group: Tensor, planes: int, finer: float) -> Tensor:
    """Coefficients to try for one group.

    Args:
        group: f32[g].
        planes: K.
        finer: The grids have so many times as many numbers.

    Returns:
        f32[candidates, K].
    """
    ratios, biases, scales = (int(finer * count) for count in (RATIOS, BIASES, SCALES))
    device = group.device
    small, large = ratios // 2, ratios - ratios // 2
    sizes = [torch.linspace(*SMALL_RATIOS, small), torch.linspace(*LARGE_RATIOS, large)]
    powers = (-torch.cat(sizes))[:, None] ** torch.arange(planes)
    shape = (powers / powers.abs().sum(1, keepdim=True)).to(device)
    least, largest = float(group.min()), float(group.max())
    size = float(group.square().mean().sqrt())
    most = max(2 * abs(float(group.mean())) / planes, LEAST_BIAS * size)
    bias = torch.linspace(-most, most, biases, device=device)
    start = 2 * float(group.quantile(QUANTILE))
    scale = torch.linspace(start, WIDEST * (largest - least), scales, device=device)
    powered = bias[:, None, None, None] + scale[:, None, None] * shape
    if planes > MOST_COMBINED:
        return powered.reshape(-1, planes)
    count = int((ratios * biases * scales) ** (1 / planes) + 1e-9)
    middle, reach = (least + largest) / 2, SPREAD * (largest - least) / 2
    axis = torch.linspace(middle - reach, middle + reach, count, device=device)
    combined = torch.combinations(axis, planes, with_replacement=True)
    return torch.cat([powered.reshape(-1, planes), combined])


def _levels(lines: Tensor) -> Tensor:
    """The levels of lines, f32[L, K], ascending: f64[L, 2^K]."""
    return plane_levels(Coefficients(lines, None)).T.double().sort(dim=1).values
