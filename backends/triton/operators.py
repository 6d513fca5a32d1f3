"""The kernels as operators of torch: they trace, export and go into CUDA graphs.

Which kernel runs is decided inside, from the number of rows alone, so that a trace holds one
operator for every size. Triton starts kernels on the current device, which the operators make that
of their input. None has a gradient.
"""

import torch
from torch import Tensor

from .expanding import Expander, expand_binary, expand_trellis, expand_uniform, run_expanded
from .launch import run_binary, run_embedding, run_trellis
from .launch import run_uniform as _run_uniform
from .rotation import rotated_inputs, rotated_outputs
from .tuning import choose
from .variants import trellis_choice, uniform_choice


@torch.library.custom_op("qdc::binary_linear", mutates_args=("arrivals",))
def binary_linear(
    x: Tensor,
    pair_planes: Tensor,
    single_planes: Tensor,
    row_scale: Tensor,
    col_scale: Tensor,
    exact_col_scale: Tensor,
    pairs: Tensor,
    singles: Tensor,
    blocks: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    arrivals: Tensor,
    columns: int,
    rows: list[int],
) -> Tensor:
    """Multi-binary linears on ``x [M, columns]``: ``[M, sum(rows)]``; ``layout.py`` has the rest.

    ``arrivals`` is zero before and after; two launches at once must not share it.
    """
    if x.shape[0] == 0:
        return x.new_empty(0, sum(rows))
    units = pairs.shape[0] + singles.shape[0]
    planes = 2 * pairs.shape[0] + singles.shape[0]
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        choice = choose(x.shape[0], pair_planes.shape[1], columns, planes, units, x.dtype)
        if choice.variant.family == "expand":
            expand = expand_binary(
                pair_planes, single_planes, row_scale, exact_col_scale, blocks, tiles, columns
            )
            return run_expanded(x, bias, rows, expand)
        return run_binary(
            x,
            pair_planes,
            single_planes,
            row_scale,
            col_scale,
            pairs,
            singles,
            tiles,
            bias,
            arrivals,
            columns,
            sum(rows),
            choice,
        )


@binary_linear.register_fake
def _(
    x: Tensor,
    pair_planes: Tensor,
    single_planes: Tensor,
    row_scale: Tensor,
    col_scale: Tensor,
    exact_col_scale: Tensor,
    pairs: Tensor,
    singles: Tensor,
    blocks: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    arrivals: Tensor,
    columns: int,
    rows: list[int],
) -> Tensor:
    return x.new_empty(x.shape[0], sum(rows))


@torch.library.custom_op("qdc::uniform_linear", mutates_args=())
def uniform_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    columns: int,
    rows: list[int],
    bits: int,
    group: int,
) -> Tensor:
    """Uniform linears on ``x [M, columns]``: ``[M, sum(rows)]``."""
    if x.shape[0] == 0:
        return x.new_empty(0, sum(rows))
    variant = uniform_choice(x.shape[0])
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        if variant.family == "expand" or x.dtype == torch.float32:
            expand = expand_uniform(codes, scale, offset, tiles, columns, bits, group)
            return run_expanded(x, bias, rows, expand)
        return _run_uniform(
            x, codes, scale, offset, tiles, bias, columns, sum(rows), bits, group, variant
        )


@uniform_linear.register_fake
def _(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    columns: int,
    rows: list[int],
    bits: int,
    group: int,
) -> Tensor:
    return x.new_empty(x.shape[0], sum(rows))


@torch.library.custom_op("qdc::rotated_inputs", mutates_args=())
def rotated(x: Tensor, signs: Tensor) -> Tensor:
    """``x [M, columns]`` rotated with signs ``i8[1, columns]``, in its dtype."""
    if x.shape[0] == 0:
        return torch.empty_like(x)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        return rotated_inputs(x, signs)[0]


@rotated.register_fake
def _(x: Tensor, signs: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("qdc::trellis_linear", mutates_args=())
def trellis_linear(
    x: Tensor,
    codes: Tensor,
    table: Tensor,
    exact_table: Tensor,
    scale: Tensor,
    in_signs: Tensor,
    out_signs: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    columns: int,
    rows: list[int],
    height: int,
    span: int,
    rate: int,
    window: int,
) -> Tensor:
    """Linears on trellis codes on ``x [M, columns]``; ``rings.py`` has the rest.

    ``table`` has the dtype of ``x``, ``exact_table`` is fp32; ``[M, sum(rows)]`` comes out.
    """
    if x.shape[0] == 0:
        return x.new_empty(0, sum(rows))
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        turned = rotated_inputs(x, in_signs)
        choice = trellis_choice(x.shape[0], tiles.shape[0], height, columns)
        if choice.variant.family == "expand" or x.dtype == torch.float32:
            expand = expand_trellis(
                codes, exact_table, scale, tiles, columns, height, span, rate, window
            )
            z = _expanded_segments(turned, rows, expand, height)[None]
        else:
            z = run_trellis(
                turned, codes, table, scale, tiles, sum(rows), height, span, rate, window, choice
            )
        return rotated_outputs(z, out_signs, rows, bias, x.dtype)


def _expanded_segments(x: Tensor, rows: list[int], expand: Expander, height: int) -> Tensor:
    """``[M, sum(rows)]`` from ``x [D, M, columns]``: all at once, or segment by segment."""
    if len(x) == 1:
        return run_expanded(x[0], None, rows, expand, height)
    found, tile, output = [], 0, 0
    for own, count in zip(x, rows, strict=True):

        def shifted(
            weight: Tensor,
            first: int,
            last: int,
            start: int,
            tile: int = tile,
            output: int = output,
        ) -> None:
            expand(weight, tile + first, tile + last, output + start)

        found.append(run_expanded(own, None, [count], shifted, height))
        tile, output = tile + -(-count // height), output + count
    return torch.cat(found, dim=1)


@trellis_linear.register_fake
def _(
    x: Tensor,
    codes: Tensor,
    table: Tensor,
    exact_table: Tensor,
    scale: Tensor,
    in_signs: Tensor,
    out_signs: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    columns: int,
    rows: list[int],
    height: int,
    span: int,
    rate: int,
    window: int,
) -> Tensor:
    return x.new_empty(x.shape[0], sum(rows))


@torch.library.custom_op("qdc::uniform_embedding", mutates_args=())
def uniform_embedding(
    ids: Tensor,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor,
    columns: int,
    bits: int,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    """Rows ``i64[M]`` of an embedding: ``[M, columns]`` in ``dtype``."""
    if ids.shape[0] == 0:
        return torch.empty(0, columns, dtype=dtype, device=ids.device)
    with torch.cuda.device_of(ids):  # type: ignore[no-untyped-call]
        return run_embedding(ids, codes, scale, offset, columns, bits, group, dtype)


@uniform_embedding.register_fake
def _(
    ids: Tensor,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor,
    columns: int,
    bits: int,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty(ids.shape[0], columns, dtype=dtype, device=ids.device)
