"""Low-bit linears of other libraries, where they are importable. None is a dependency.

Each is a function from a bf16 weight to a call; what it raises on a card or version that it does
not support is reported in its place.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec

import torch
from torch import Tensor, nn

Linear = Callable[[Tensor], Tensor]
Make = Callable[[Tensor], Linear]


def _torchao(weight: Tensor) -> Linear:
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    linear = _plain(weight)
    quantize_(linear, Int4WeightOnlyConfig(group_size=128))
    return linear


def _hqq(weight: Tensor) -> Linear:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=2, group_size=64, axis=1)
    found: Linear = HQQLinear(
        _plain(weight), config, compute_dtype=weight.dtype, device=str(weight.device)
    )
    return found


def _bitsandbytes(weight: Tensor) -> Linear:
    import bitsandbytes

    linear = bitsandbytes.nn.Linear4bit(
        weight.shape[1], weight.shape[0], bias=False, compute_dtype=weight.dtype, quant_type="nf4"
    )
    linear.weight = bitsandbytes.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4")
    found: Linear = linear.to(weight.device)
    return found


def _plain(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


KNOWN: Mapping[str, tuple[str, Make]] = {
    "torchao int4": ("torchao", _torchao),
    "hqq 2 bits": ("hqq", _hqq),
    "bitsandbytes nf4": ("bitsandbytes", _bitsandbytes),
}
"""For each peer the package that it needs, and its linear."""


def importable(known: Mapping[str, tuple[str, Make]] = KNOWN) -> Iterator[tuple[str, Make]]:
    """The peers whose packages are installed here."""
    for name, (package, make) in known.items():
        if find_spec(package) is not None:
            yield name, make


def first_line(error: BaseException) -> str:
    """Why a peer could not be measured."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def dtype_of(name: str) -> torch.dtype:
    """The dtype of this name. Raises ``TypeError`` for anything else."""
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return found
