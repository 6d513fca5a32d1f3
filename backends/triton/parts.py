"""What the packed modules are made from, and which codecs they can run."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from qdc.errors import QdcError
from qdc.format.codec import Codec
from qdc.format.multibinary import MultiBinary
from qdc.format.trelliscode import TrellisCode
from qdc.format.uniformgrid import UniformGrid

from .support import REFERENCE

TILE_COLUMNS = 128
"""Columns that a kernel takes at a time where it can; wider blocks are taken in parts."""
TILES = (TILE_COLUMNS, 64, 32)
"""Columns of a tile, the widest first: the first that parts a block without rest is taken."""


class Part(NamedTuple):
    """One quantized layer: what the artifact says of it, and its tensors as stored."""

    codec: Codec
    stored: Mapping[str, Tensor]
    bias: Tensor | None = None
    """``[rows]``, of any floating dtype."""


def tile_columns(span: int) -> int | None:
    """Columns of a kernel's tile for blocks or groups of ``span`` columns; None if there is no."""
    return next((tile for tile in TILES if span % tile == 0), None)


def span_of(codec: Codec) -> int:
    """Columns that share their row scales: a block, or a group.

    A group that is as wide as the layer, or wider, may be padded as one likes.
    """
    if isinstance(codec, MultiBinary):
        return codec.block
    assert isinstance(codec, UniformGrid)
    if codec.group < codec.columns:
        return codec.group
    return -(-codec.columns // TILE_COLUMNS) * TILE_COLUMNS


def refuse_codec(codec: Codec, layer: str) -> None:
    """Refuse a codec that no kernel reads. Raises ``QdcError`` naming layer and codec."""
    if isinstance(codec, TrellisCode):
        return
    if not isinstance(codec, MultiBinary | UniformGrid):
        what = f"the backend triton has no kernel for layers stored as {codec.name}"
    elif tile_columns(span_of(codec)) is None:
        kind = "blocks" if isinstance(codec, MultiBinary) else "groups"
        what = (
            f"the backend triton takes {kind} of multiples of 32 columns, not of {span_of(codec)}"
        )
    else:
        return
    raise QdcError(what, where=[layer], help=REFERENCE)


def refuse_codecs(codecs: Mapping[str, Codec]) -> None:
    """Refuse what no kernel reads, all layers at once. Raises ``QdcError``."""
    refused: dict[str, QdcError] = {}
    for layer, codec in codecs.items():
        try:
            refuse_codec(codec, layer)
        except QdcError as error:
            refused[layer] = error
    if refused:
        first = next(iter(refused.values()))
        raise QdcError(first.what, where=list(refused), help=first.help)


def can_join(codecs: Sequence[Codec]) -> bool:
    """Whether linears that read one value can be one launch: planes or codes line up."""
    first, *others = codecs
    if isinstance(first, MultiBinary):
        key = (first.columns, first.block, first.orders)
        return all(
            isinstance(o, MultiBinary) and (o.columns, o.block, o.orders) == key for o in others
        )
    if isinstance(first, UniformGrid):
        grid = (first.columns, first.group, first.bits)
        return all(
            isinstance(o, UniformGrid) and (o.columns, o.group, o.bits) == grid for o in others
        )
    if isinstance(first, TrellisCode):
        return all(isinstance(o, TrellisCode) and _rings(o) == _rings(first) for o in others)
    return False


def _rings(codec: TrellisCode) -> tuple[object, ...]:
    """What rings of one launch have in common; rotations and scales are each layer's own."""
    return codec.columns, codec.tiling, codec.rate, codec.window, codec.code
