"""Rotations of activations: those of inputs before a product with rings, of outputs behind it."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

from qdc.numerics.hadamard import transform_size, walsh_hadamard

from .hadamard import rotate
from .support import interpreting

LARGEST = 1 << 15
"""Numbers that a program transforms in its registers; nothing that is known transforms more."""
SMALLEST = 1 << 10
"""Numbers of a program, of several blocks if they are small."""
OF_A_WARP = 512
MOST_WARPS = 16


def rotated_inputs(x: Tensor, signs: Tensor) -> Tensor:
    """Rotate activations as layers want them.

    Args:
        x: ``[M, columns]``.
        signs: ``i8[D, columns]``.

    Returns:
        ``[D, M, columns]`` in the dtype of ``x``, rounded once.
    """
    found = torch.empty(len(signs), *x.shape, dtype=x.dtype, device=x.device)
    size = transform_size(x.shape[1])
    if size > LARGEST:
        for number, own in enumerate(signs):
            found[number] = walsh_hadamard(x.float() * own, size) * (1 / math.sqrt(size))
    else:
        _launch(x[None], signs, None, found, size, before=True)
    return found


def rotated_outputs(
    z: Tensor, signs: Tensor, rows: Sequence[int], bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Rotate products back to outputs, each segment for itself.

    Args:
        z: ``[P, M, sum of rows]``, floating point: parts of the products, which are added up first.
        signs: ``i8[sum of rows]``.
        rows: of each segment.
        bias: ``[sum of rows]``.
        dtype: of the outputs.

    Returns:
        ``[M, sum of rows]``, rounded once.
    """
    y = torch.empty(z.shape[1], z.shape[2], dtype=dtype, device=z.device)
    for start, stop, size in _runs(tuple(rows)):
        own, out = z[:, :, start:stop], y[:, start:stop]
        added = None if bias is None else bias[start:stop]
        if size > LARGEST:
            mixed = walsh_hadamard(own.sum(0, dtype=torch.float32), size) * signs[start:stop]
            mixed *= 1 / math.sqrt(size)
            out.copy_(mixed if added is None else mixed + added)
        else:
            _launch(own, signs[None, start:stop], added, out[None], size, before=False)
    return y


@cache
def _runs(rows: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """First and last output and the size of the transform; neighbours of one size are one run."""
    found: list[tuple[int, int, int]] = []
    for stop, count in zip(accumulate(rows), rows, strict=True):
        start, size = stop - count, transform_size(count)
        if found and found[-1][2] == size:
            start = found.pop()[0]
        found.append((start, stop, size))
    return found


def run_of(size: int) -> tuple[int, int]:
    """Numbers of a program that transforms blocks of ``size``, and its warps."""
    run = max(size, SMALLEST)
    return run, min(MOST_WARPS, run // OF_A_WARP)


def _launch(
    values: Tensor, signs: Tensor, bias: Tensor | None, out: Tensor, size: int, *, before: bool
) -> None:
    """Rotate ``[P, M, width]`` to ``[D, M, width]`` with signs ``i8[D, width]``."""
    parts, tokens, width = values.shape
    run, warps = run_of(size)
    rotate[(tokens, -(-width // run), len(signs))](
        values,
        signs,
        signs if bias is None else bias,
        out,
        width,
        values.stride(1),
        values.stride(0),
        out.stride(1),
        1 / math.sqrt(size),
        RUN=run,
        STAGES=size.bit_length() - 1,
        PARTS=parts,
        BEFORE=before,
        HAS_BIAS=bias is not None,
        **({} if interpreting() else {"num_warps": warps}),
    )
