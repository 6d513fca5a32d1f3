"""Memory of a process: given back where the system can, and nothing said where it cannot."""

import ctypes
from collections.abc import Callable

import pytest
import torch

from qdc.streaming.memory import give_back, give_back_growth, resident_bytes

MEGABYTE = 1 << 20


@pytest.mark.parametrize("back", [give_back, give_back_growth])
def test_what_is_free_between_what_stays_goes_back(back: Callable[[], None]) -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("the allocator is not that of glibc")
    give_back()  # or blocks might lie in what tests before this one have freed
    give_back_growth()
    # Smaller than what glibc maps by itself, with blocks between them that stay.
    blocks = [torch.ones(MEGABYTE // 64) for _ in range(2000)]
    full = resident_bytes()
    del blocks[::2]
    back()
    assert resident_bytes() < full - 30 * MEGABYTE


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_another_allocator_is_left_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str | None) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    give_back()
