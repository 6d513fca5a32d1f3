"""What the card is, and what it does at its best: copies and matrix products."""

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch
from pydantic import BaseModel

from .clock import Clock

PACKAGES = ("torch", "triton", "torchao", "hqq", "bitsandbytes", "qdc")
UNKNOWN = "not installed"


class Card(BaseModel):
    """The machine, and the rates that floors are computed from."""

    name: str
    driver: str
    capability: str
    memory_bytes: int
    cache_bytes: int
    """Of the L2 cache."""
    python: str
    versions: dict[str, str]
    measured: bool
    """False for a dry run on a CPU: no time in the result means anything."""
    copy_bytes_per_second: float
    """Read and written, of a copy much larger than the L2."""
    bf16_flops: float
    """Operations a second of a large bf16 product, two a multiply-add."""


def look(clock: Clock, size: int, side: int) -> Card:
    """Identify the card and measure its rates.

    Args:
        clock: times.
        size: bytes that are copied.
        side: of the matrices that are multiplied.
    """
    device = clock.device
    cuda = device.type == "cuda"
    properties = torch.cuda.get_device_properties(device) if cuda else None
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = clock.time([lambda: target.copy_(source)]).seconds
    left, right = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    product = clock.time([lambda: left @ right]).seconds
    return Card(
        name=properties.name if properties is not None else f"no GPU ({platform.machine()})",
        driver=_driver() if cuda else "none",
        capability=f"{properties.major}.{properties.minor}" if properties is not None else "none",
        memory_bytes=properties.total_memory if properties is not None else 0,
        cache_bytes=properties.L2_cache_size if properties is not None else 0,
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
        measured=clock.measures,
        copy_bytes_per_second=2 * size / copy,
        bf16_flops=2 * side**3 / product,
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return UNKNOWN


def _driver() -> str:
    found = shutil.which("nvidia-smi")
    if found is None:
        return "unknown: nvidia-smi is not there"
    query = [found, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return (done.stdout.strip().splitlines() or ["unknown"])[0]
