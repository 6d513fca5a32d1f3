"""Which backend runs an artifact where none was named."""

import logging
from collections.abc import Mapping
from importlib.util import find_spec

import torch

from qdc.format.codec import Codec
from qdc.runtime.options import AUTO
from qdc.version import install

log = logging.getLogger(__name__)

PACKED, DENSE = "cpu", "reference"
PACKED_EXACT = "cpu{arithmetic=f32}"
"""Products in fp32, as dense weights have them: for figures that are compared."""
ACTIVATIONS = (None, torch.float32, torch.bfloat16, torch.float16)
"""What the packed runtime computes in; None is its own choice."""
LARGE = 1 << 30
"""Bytes of dense weights from which it is worth a line that they could stay packed."""


def chosen_backend(
    text: str, device: str | torch.device, dtype: torch.dtype | None, *, exact: bool = False
) -> str:
    """The backend that ``auto`` stands for; any other text is given back.

    On a CPU weights stay packed, unless the package that compiles kernels is not installed, or the
    dtype is one that they do not compute in. ``exact`` asks for products in fp32.
    """
    if text != AUTO:
        return text
    on_cpu = torch.device(device).type == "cpu" and dtype in ACTIVATIONS
    if not on_cpu or not _has_compiler():
        return DENSE
    return PACKED_EXACT if exact else PACKED


def tell_dense(
    text: str, device: str | torch.device, dtype: torch.dtype | None, codecs: Mapping[str, Codec]
) -> None:
    """Say in the log that a large model is decoded only because a package is missing."""
    on_cpu = torch.device(device).type == "cpu" and dtype in ACTIVATIONS
    if text != AUTO or not on_cpu or _has_compiler():
        return
    nbytes = sum(codec.rows * codec.columns for codec in codecs.values())
    nbytes *= (dtype or torch.float32).itemsize
    if nbytes >= LARGE:
        log.warning(
            "llvmlite is not installed, so all weights are decoded: %.1f GiB; they stay packed "
            "after: %s",
            nbytes / (1 << 30),
            install("cpu"),
        )


def _has_compiler() -> bool:
    return find_spec("llvmlite") is not None
