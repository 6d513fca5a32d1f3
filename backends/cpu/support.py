"""What this machine can do: whether kernels can be compiled, which arithmetic is the fastest."""

import functools
import logging
from importlib.util import find_spec

import torch

from qdc.version import install

log = logging.getLogger(__name__)

REFERENCE = "--backend reference decodes all weights once, and runs everywhere"


@functools.cache
def has_compiler() -> bool:
    """Whether llvmlite is there; once a process, the log says what its absence costs."""
    if find_spec("llvmlite") is not None:
        return True
    log.warning(
        "llvmlite is not installed: packed weights are decoded by torch at every call, which is "
        "many times slower; %s, or %s",
        install("cpu"),
        REFERENCE,
    )
    return False


@functools.cache
def features() -> frozenset[str]:
    """Names of what the processor has beyond its basic instructions, as LLVM calls them."""
    if not has_compiler():
        return frozenset()
    from .machine import processor

    return frozenset(name for name, there in processor().features.items() if there)


@functools.cache
def product_type() -> torch.dtype:
    """In which the library multiplies fastest: bf16 where the processor has it, else fp32."""
    if has_compiler():
        fast = {"avx512bf16", "amx-bf16", "bf16"} & features()
        return torch.bfloat16 if fast else torch.float32
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    fast_ = any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
    return torch.bfloat16 if fast_ else torch.float32


def looks_up() -> bool:
    """Whether kernels that permute 16-bit words of 512-bit vectors run here."""
    return "avx512bw" in features()
