"""Memory of this process and of the machine."""

import os
from pathlib import Path

STATM = Path("/proc/self/statm")
USUAL = 400_000_000
"""Of a process that has imported torch, where the system does not say."""


def resident_bytes() -> int:
    """Bytes that are in memory now."""
    if not STATM.is_file():
        return USUAL
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def machine_bytes() -> int:
    """Memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
