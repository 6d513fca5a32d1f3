"""Devices: which ones there are, and how they multiply."""

import contextlib
from collections.abc import Iterator

import torch

from qdc.errors import QdcError

AUTO = "auto"
KNOWN = "known: cpu, cuda, auto"


def find_device(device: str) -> str:
    """Resolve ``auto`` to CUDA where it is there, else the CPU; check any other name.

    Raises ``QdcError`` for a device that is not there.
    """
    if device == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return device


def check_device(device: str) -> None:
    """Refuse a device that is not there. Raises ``QdcError``."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise QdcError(f"no device is called {device!r}", help=KNOWN) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise QdcError("this torch sees no CUDA device", help="use --device cpu")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise QdcError(
            f"device {device!r} is not there",
            help=f"there are {torch.cuda.device_count()}, counted from cuda:0",
        )
    if kind not in ("cpu", "cuda"):
        raise QdcError(f"device {device!r} is not supported", help=KNOWN)


def own_memory(device: torch.device) -> int | None:
    """Bytes of a device's own memory; None where it computes in the host's."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Multiply fp32 matrices in fp32: moments in TF32 would lose what the fit rests on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
