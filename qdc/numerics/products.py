"""Products of fp32 matrices on a CPU, by the library that uses the whole width of the processor.

torch hands fp32 products to MKL, which takes AVX-512 on Intel's processors alone: on an AMD EPYC
with AVX-512 it makes 100 GFLOP/s a core, and oneDNN, which torch carries too, 220. Both multiply
and add in fp32. So products of some size go to oneDNN where the processor has AVX-512, and those of
their first derivatives too; the rest goes the way that torch chooses. ``ATEN_CPU_CAPABILITY=avx2``
in the environment leaves all of it to torch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

WORTHWHILE = 1 << 21
"""Multiplications from which on a product is worth a call of oneDNN: 32 rows of 256 by 256."""


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What ``torch.nn.functional.linear`` gives, in the same precision.

    Args:
        inputs: [..., columns], any float dtype and device.
        weight: [rows, columns], of the same kind; any strides.
        bias: [rows].

    Returns:
        [..., rows], inputs weight^T + bias. Its derivatives are first ones: of what oneDNN has
        computed torch refuses a second.
    """
    if _wide() is None or not _is_worthwhile(inputs, weight, bias):
        return F.linear(inputs, weight, bias)
    given = (inputs, weight) if bias is None else (inputs, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        found: Tensor = _Differentiable.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
        return found
    return _by_onednn(inputs, weight, bias)


def _by_onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    wide = _wide()
    assert wide is not None
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()  # for a part of a matrix oneDNN has nothing but plain loops
    if bias is not None:
        bias = bias.contiguous()  # whose strides oneDNN does not look at
    return wide(inputs, weight, bias, "none", [], "")


class _Differentiable(torch.autograd.Function):
    """A linear of oneDNN and the two products of its derivatives."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _by_onednn(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        rows = slope.reshape(-1, len(weight))
        asked = ctx.needs_input_grad
        return (
            product(rows, weight).view(inputs.shape) if asked[0] else None,
            product(rows.T, inputs.reshape(-1, weight.shape[1])) if asked[1] else None,
            rows.sum(0) if asked[2] else None,
        )


def product(left: Tensor, right: Tensor) -> Tensor:
    """The product of matrices: [..., n] and [n, m] give [..., m]."""
    return linear(left, right.T)


def wide_products(
    device: torch.device | str, *, needed: bool = True
) -> AbstractContextManager[object]:
    """Have linears of any model computed by ``linear``, in this thread, where it is on a CPU.

    Every call of torch is looked at then, which costs a microsecond: ``has_matrices`` says whether
    that is ``needed``.
    """
    return _WideProducts() if needed and torch.device(device).type == "cpu" else nullcontext()


def has_matrices(model: object) -> bool:
    """Whether a model may multiply with fp32 parameters; a packed one holds its weights otherwise.

    Embeddings are looked up in. Of what is no module, nothing is known.
    """
    if not isinstance(model, nn.Module):
        return True
    return any(
        parameter is not None and parameter.ndim > 1 and parameter.dtype == torch.float32
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module._parameters.values()
    )


def undisturbed() -> AbstractContextManager[object]:
    """Within it no call of torch asks who else would compute it, ``wide_products`` among them.

    For code that multiplies by kernels of its own: each small call of torch, and each look at a
    tensor's address, would be asked about otherwise, for a microsecond.
    """
    return torch._C.DisableTorchFunction()


class _WideProducts(TorchFunctionMode):
    """Within a ``with`` block linears are computed by ``linear``."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Take the place of one function of torch."""
        named = dict(kwargs or {})
        if func not in LINEARS or torch.compiler.is_compiling():
            return func(*args, **named)
        if "input" in named:
            named["inputs"] = named.pop("input")
        return linear(*args, **named)


LINEARS = (F.linear, torch.ops.aten.linear.default)
"""What modules call, and what exported graphs call."""


@functools.cache
def _wide() -> Callable[..., Tensor] | None:
    """The product of oneDNN; None where torch comes without it, or the processor is too narrow."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _is_worthwhile(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN can compute this, and is the faster one."""
    given = (inputs, weight) if bias is None else (inputs, weight, bias)
    return (
        weight.ndim == 2
        and inputs.numel() * len(weight) >= WORTHWHILE
        and inputs.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and all(type(t) in PLAIN and t.dtype == torch.float32 for t in given)
        and all(t.device.type == "cpu" for t in given)
        and not is_transformed()
        and bool(torch.backends.mkldnn.enabled)
    )


PLAIN = (Tensor, nn.Parameter)
"""Others say themselves how they are multiplied."""


def is_transformed() -> bool:
    """Whether torch computes something else of this, of which calls like oneDNN's know nothing.

    Tangents of forward differentiation are what it would lose, and autocast what it would not do.
    """
    return (
        forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch.is_autocast_enabled("cpu")
    )
