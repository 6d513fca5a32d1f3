"""What memory a process has, and what it may have here."""

import contextlib
import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container says what it allows: control groups of version 2 and 1."""
MEMINFO = Path("/proc/meminfo")
STATM = Path("/proc/self/statm")
USUAL = 400_000_000
"""Bytes of a process that has imported torch, where the system does not say."""
GROWTH = 64 << 20
"""Bytes by which a process grows before what it has freed is given back."""
STATES_SHARE = 2
"""Calibration states take one part of so many; weights, statistics and files want the rest."""
STATISTICS_SHARE = 4
"""Statistics of a wave take one part of so many of the device's memory."""


def machine_memory(limits: tuple[str, ...] = LIMITS) -> int:
    """Bytes of the machine's memory, or of the container's where that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, limits):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():  # "max" where there is no limit
            found.append(int(text))
    return min(found)


def free_memory() -> int | None:
    """Bytes that could be taken now without swapping; None where the system does not say."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(words[1]) * 1024 for words in found), None)


def states_memory() -> int:
    """Bytes that calibration states may take in host memory if nobody says so.

    Processes that torchrun has started on one machine share them.
    """
    return machine_memory() // STATES_SHARE // _processes()


def statistics_memory(own: int | None) -> int:
    """Bytes that the statistics of a wave of experts may take if nobody says so.

    Args:
        own: bytes of the device's own memory; None where processes compute in the host's, which
            they share.
    """
    whole = machine_memory() // _processes() if own is None else own
    return whole // STATISTICS_SHARE


def give_back() -> None:
    """Give the system what the allocator has kept of freed memory, where it is that of glibc.

    A way back frees blocks between others that stay, of which glibc gives nothing back by itself.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def give_back_growth() -> None:
    """The same once the process has grown by ``GROWTH`` since it was last done.

    What waits of each batch lies between what the next ones have freed: called after every batch,
    for it reads but one line of the system's.
    """
    now = resident_bytes()
    if now > _left.resident + GROWTH:
        give_back()
        _left.resident = now = resident_bytes()
    _left.resident = min(_left.resident, now)


@dataclass
class _Left:
    """What the process had after it last gave memory back, or less."""

    resident: int = 0


_left = _Left()


def _processes() -> int:
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(beside)) if beside.isdecimal() else 1


def resident_bytes() -> int:
    """Bytes of this process that are in memory now."""
    if not STATM.is_file():
        return USUAL
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
