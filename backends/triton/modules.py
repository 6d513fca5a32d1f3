"""Modules that stand in the place of linears and embeddings and hold packed tensors alone."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qdc.errors import QdcError
from qdc.format.multibinary import MultiBinary
from qdc.format.trelliscode import TrellisCode
from qdc.format.uniformgrid import UniformGrid
from qdc.numerics.trellis import EIGHTHS

from .arena import reserve
from .layout import TILE_ROWS, binary_layout, uniform_layout
from .parts import Part, can_join, refuse_codec
from .rings import ring_layout
from .support import REFERENCE, require_triton
from .variants import TOKEN_TILES

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Of activations. fp32 takes the way of many rows, whatever their number."""


class PackedLinear(nn.Module):
    """A linear, or the linears of a stage joined to one launch.

    Args:
        parts: the layers, in the order of their outputs.
        dtype: of activations: bf16, fp16, or fp32.
        device: where the packed tensors go.

    Raises:
        QdcError: no kernel reads the codec, the parts cannot be joined, or this machine has
            neither CUDA nor the interpreter.
    """

    pair_planes: Tensor
    single_planes: Tensor
    row_scale: Tensor
    col_scale: Tensor
    exact_col_scale: Tensor
    pairs: Tensor
    singles: Tensor
    blocks: Tensor
    tiles: Tensor
    arrivals: Tensor
    codes: Tensor
    scale: Tensor
    offset: Tensor
    table: Tensor
    exact_table: Tensor
    in_signs: Tensor
    out_signs: Tensor
    bias: Tensor | None

    def __init__(
        self, parts: Sequence[Part], dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        device = torch.device(device)
        _require(parts, dtype, device)
        codecs = [part.codec for part in parts]
        if not self.can_join(parts):
            raise QdcError(
                "these linears cannot be one launch: columns, blocks, orders or tiles differ",
                help="run them one by one",
            )
        self.rows = tuple(codec.rows for codec in codecs)
        self.columns = codecs[0].columns
        self.dtype = dtype
        moved = [
            Part(part.codec, {s: t.to(device) for s, t in part.stored.items()}) for part in parts
        ]
        self.kind = codecs[0].name
        height = TILE_ROWS
        if isinstance(codecs[0], MultiBinary):
            self._hold_planes(moved, device)
        elif isinstance(codecs[0], TrellisCode):
            self._hold_rings(moved, device)
            height = codecs[0].height
        else:
            self._hold_codes(moved, device)
        biases = [part.bias for part in parts]
        joined = None
        if any(bias is not None for bias in biases):
            joined = torch.cat(
                [
                    torch.zeros(rows) if bias is None else bias.float().cpu()
                    for rows, bias in zip(self.rows, biases, strict=True)
                ]
            ).to(device, dtype)
        self.register_buffer("bias", joined)
        reserve(height * self.columns, dtype, device)

    @staticmethod
    def can_join(parts: Sequence[Part]) -> bool:
        """Whether linears that read one value can be one launch; a matter of codecs alone."""
        return can_join([part.codec for part in parts])

    def forward(self, x: Tensor) -> Tensor:
        """``[..., columns] -> [..., sum(rows)]``, in the dtype of ``x``."""
        flat = rows_of(x, self.columns)
        rows = list(self.rows)
        if self.kind == MultiBinary.name:
            found: Tensor = torch.ops.qdc.binary_linear(
                flat,
                self.pair_planes,
                self.single_planes,
                self.row_scale,
                self.col_scale if x.dtype == self.dtype else self.exact_col_scale.to(x.dtype),
                self.exact_col_scale,
                self.pairs,
                self.singles,
                self.blocks,
                self.tiles,
                self.bias,
                self.arrivals,
                self.columns,
                rows,
            )
        elif self.kind == TrellisCode.name:
            found = torch.ops.qdc.trellis_linear(
                flat,
                self.codes,
                self.table if x.dtype == self.dtype else self.exact_table.to(x.dtype),
                self.exact_table,
                self.scale,
                self.in_signs,
                self.out_signs,
                self.tiles,
                self.bias,
                self.columns,
                rows,
                self.height,
                self.span,
                self.rate,
                self.window,
            )
        else:
            found = torch.ops.qdc.uniform_linear(
                flat,
                self.codes,
                self.scale,
                self.offset,
                self.tiles,
                self.bias,
                self.columns,
                rows,
                self.bits,
                self.group,
            )
        return found.reshape(*x.shape[:-1], sum(self.rows))

    def extra_repr(self) -> str:
        """Shape and kind, for ``print(model)``."""
        kind = self.kind
        if kind == UniformGrid.name:
            kind += f", {self.bits} bits"
        elif kind == TrellisCode.name:
            kind += f", {self.rate / EIGHTHS:.4g} bits"
        return f"{self.columns} -> {' + '.join(map(str, self.rows))}, {kind}"

    def _hold_planes(self, parts: Sequence[Part], device: torch.device) -> None:
        layout = binary_layout(parts)
        self.register_buffer("pair_planes", layout.pair_planes().to(device))
        self.register_buffer("single_planes", layout.single_planes().to(device))
        self.register_buffer("row_scale", layout.row_scale.to(device))
        self.register_buffer("exact_col_scale", layout.col_scale.to(device))
        # A product with bf16 activations wants scales of its own dtype; they are small.
        self.register_buffer("col_scale", layout.col_scale.to(device, self.dtype))
        self.register_buffer("pairs", layout.pairs.to(device))
        self.register_buffer("singles", layout.singles.to(device))
        self.register_buffer("blocks", layout.blocks.to(device))
        self.register_buffer("tiles", layout.tiles.to(device))
        # Programs that share a tile of outputs count themselves here, and leave zeros behind.
        places = layout.planes.shape[1] // 64 * TOKEN_TILES
        self.register_buffer(
            "arrivals", torch.zeros(places, dtype=torch.int32, device=device), persistent=False
        )

    def _hold_codes(self, parts: Sequence[Part], device: torch.device) -> None:
        layout = uniform_layout(parts)
        codec = parts[0].codec
        assert isinstance(codec, UniformGrid)
        self.bits, self.group = codec.bits, layout.group
        self.register_buffer("codes", layout.codes.to(device))
        self.register_buffer("scale", layout.scale.to(device))
        self.register_buffer("offset", layout.offset.to(device))
        self.register_buffer("tiles", layout.tiles.to(device))

    def _hold_rings(self, parts: Sequence[Part], device: torch.device) -> None:
        layout = ring_layout(parts)
        self.height, self.span = layout.height, layout.span
        self.rate, self.window = layout.rate, layout.window
        self.register_buffer("codes", layout.codes.to(device))
        # Expanded weights are rounded after they are scaled, so they start from exact levels.
        self.register_buffer("exact_table", layout.table.to(device))
        self.register_buffer("table", layout.table.to(device, self.dtype))
        self.register_buffer("scale", layout.scale.to(device))
        self.register_buffer("in_signs", layout.in_signs.to(device))
        self.register_buffer("out_signs", layout.out_signs.to(device))
        self.register_buffer("tiles", layout.tiles.to(device))


class PackedEmbedding(nn.Module):
    """An embedding on uniform grids.

    Args:
        part: the layer; its codec is ``uniform``.
        dtype: of what comes out.
        device: where the packed tensors go.

    Raises:
        QdcError: no kernel reads the codec, or this machine cannot run one.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, part: Part, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        device = torch.device(device)
        _require([part], dtype, device)
        codec = part.codec
        if not isinstance(codec, UniformGrid):
            raise QdcError(
                f"the backend triton has no kernel for embeddings stored as {codec.name}",
                help=REFERENCE,
            )
        self.columns, self.dtype, self.bits = codec.columns, dtype, codec.bits
        self.tokens = codec.rows
        stored = {s: t.to(device) for s, t in part.stored.items()}
        layout = uniform_layout([Part(codec, stored)])
        self.group = layout.group
        self.register_buffer("codes", layout.codes.to(device))
        self.register_buffer("scale", layout.scale.to(device))
        self.register_buffer("offset", layout.offset.to(device))

    def forward(self, ids: Tensor) -> Tensor:
        """``i64[...] -> [..., columns]``; ids outside the vocabulary fail on the device."""
        torch._assert_async(((ids >= 0) & (ids < self.tokens)).all())
        found: Tensor = torch.ops.qdc.uniform_embedding(
            ids.reshape(-1),
            self.codes,
            self.scale,
            self.offset,
            self.columns,
            self.bits,
            self.group,
            self.dtype,
        )
        return found.reshape(*ids.shape, self.columns)

    def extra_repr(self) -> str:
        """Shape and bits, for ``print(model)``."""
        return f"{self.tokens} x {self.columns}, {self.bits} bits"


def _require(parts: Sequence[Part], dtype: torch.dtype, device: torch.device) -> None:
    for part in parts:
        refuse_codec(part.codec, "")
    require_kernels(device)
    refuse_dtype(dtype)


def require_kernels(device: torch.device) -> None:
    """Refuse a device that no kernel runs on, and have the operators there."""
    require_triton(device)
    # The operators register themselves when the kernels are first wanted.
    from . import operators  # noqa: F401


def rows_of(x: Tensor, columns: int) -> Tensor:
    """``[..., columns] -> [n, columns]``, each row in one piece, as kernels read it.

    Raises:
        QdcError: no kernel reads its dtype, or it has a gradient.
    """
    refuse_gradient(x)
    refuse_dtype(x.dtype)
    flat = x.reshape(-1, columns)
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def refuse_dtype(dtype: torch.dtype) -> None:
    """Refuse activations that no kernel reads. Raises ``QdcError``."""
    if dtype not in DTYPES:
        raise QdcError(
            f"the kernels take bf16, fp16 and fp32 activations, not {dtype}", help=REFERENCE
        )


def refuse_gradient(x: Tensor) -> None:
    """Refuse to be a part of what has a gradient. Raises ``QdcError``."""
    if torch.is_grad_enabled() and x.requires_grad:
        raise QdcError(
            "packed layers have no gradient",
            help="run them under torch.no_grad(), or load with the backend reference",
        )
