"""How fast the device at hand is: three small measurements, for an estimate of time."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from qdc.numerics.products import product
from qdc.streaming.work import Work

SIDE = 768
"""Of the square matrices that are multiplied: large enough to be bound by arithmetic."""
ROWS, COLUMNS = 4096, 128
"""Of a block as the quantizers see it."""
SHORTEST = 0.05
"""Seconds that each measurement takes at least."""


class Rates(NamedTuple):
    """Operations a second."""

    products: float
    exact: float
    elements: float

    def seconds(self, work: Work) -> float:
        """Time of so much work, were nothing else in the way."""
        return (
            work.products / self.products + work.exact / self.exact + work.elements / self.elements
        )


@torch.no_grad()
def measure(device: torch.device) -> Rates:
    """Multiply in fp32 and fp64, and add elementwise, on the device with the threads of now."""
    return Rates(
        products=_products(device, torch.float32),
        exact=_products(device, torch.float64),
        elements=_elements(device),
    )


def _products(device: torch.device, dtype: torch.dtype) -> float:
    matrix = torch.ones(SIDE, SIDE, device=device, dtype=dtype)
    return 2 * SIDE**3 * _rate(lambda: product(matrix, matrix), device)


def _elements(device: torch.device) -> float:
    block, other = (torch.ones(ROWS, COLUMNS, device=device) for _ in range(2))
    # Two numbers are read and one is written.
    return 3 * block.numel() * _rate(lambda: block * other, device)


def _rate(run: Callable[[], object], device: torch.device) -> float:
    """Runs a second."""
    run()
    _wait(device)
    start, runs = time.perf_counter(), 0
    while True:
        run()
        runs += 1
        _wait(device)
        passed = time.perf_counter() - start
        if passed >= SHORTEST:
            return runs / passed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
