"""What memory a process has, and what it may have here."""

import os
from pathlib import Path

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container says what it allows: control groups of version 2 and 1."""
MEMINFO = Path("/proc/meminfo")
STATM = Path("/proc/self/statm")
USUAL = 400_000_000
"""Bytes of a process that has imported torch, where the system does not say."""
STATES_SHARE = 2
"""Calibration states take one part of so many; weights, statistics and files want the rest."""


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
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    processes = max(1, int(beside)) if beside.isdecimal() else 1
    return machine_memory() // STATES_SHARE // processes


def resident_bytes() -> int:
    """Bytes of this process that are in memory now."""
    if not STATM.is_file():
        return USUAL
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
