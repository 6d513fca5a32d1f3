"""Devices: which ones there are, and how they multiply."""

import contextlib
from collections.abc import Iterator

import torch

from qdc.errors import QdcError


def check_device(device: str) -> None:
    """Refuse a device that is not there. Raises ``QdcError``."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise QdcError(f"no device is called {device!r}", help="known: cpu, cuda") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise QdcError("this torch sees no CUDA device", help="use --device cpu")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise QdcError(
            f"device {device!r} is not there",
            help=f"there are {torch.cuda.device_count()}, counted from cuda:0",
        )
    if kind not in ("cpu", "cuda"):
        raise QdcError(f"device {device!r} is not supported", help="known: cpu, cuda")


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Multiply fp32 matrices in fp32: moments in TF32 would lose what the fit rests on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
