"""What the packed runtime holds of a model, from its codecs alone: for ``qdc plan``."""

from collections import Counter

import torch

from qdc.format.codec import Codec
from qdc.format.multibinary import MultiBinary
from qdc.format.uniformgrid import UniformGrid
from qdc.pipeline.running import Resident, Running
from qdc.runtime.integers import integer_bytes

from . import support
from .packing import Layout, layout_of
from .ringlayout import RingLayout

FP32, HALF, WHOLE = 4, 2, 8
COMPILER = 90 << 20
"""Bytes of LLVM and of what it has compiled, as they were measured with llvmlite 0.50."""
PAGES = 64 << 10
"""Bytes that come with what is read first in a mapped file: the system reads so much around it."""


def resident(running: Running) -> Resident | None:
    """What is held in a forward, files that are mapped included; None without the compiler.

    Without it torch decodes at every call, and what that takes for a moment is not foretold.
    """
    if not support.has_compiler():
        return None
    from .products import TABLES_BYTES, TILE_BYTES
    from .ringproducts import ring_bytes

    exact = support.product_type() == torch.float32
    tile, tables = TILE_BYTES, dict[object, int]()
    parts: Counter[str] = Counter()
    loading = held = 0
    for layer in running.layers:
        codec = layer.codec
        if codec is None:
            assert layer.plain is not None, "a layer has a codec, or is stored plainly"
            parts["other weights"] += FP32 * layer.plain.elements({})
            continue
        if layer.embedding:
            parts["rows of the embedding"] += _touched(codec, running.tokens)
        if not layer.multiplied:
            continue
        if layer.rotated:
            parts["scales"] += HALF * codec.columns
        if layer.integer:
            whole = integer_bytes(codec)
            parts["whole numbers"] += whole
            held += whole
            # Two bytes a code while they are moved to the middle, beside the unpacked ones.
            loading = max(loading, held + 3 * whole)
            continue
        found = _of_layer(codec)
        parts.update(found)
        held += found["scales"]
        loading = max(loading, held + found["scales"])
        layout = layout_of(codec)
        if isinstance(layout, RingLayout):
            tile = max(tile, ring_bytes(layout, exact=exact))
            # Of whole numbers and of bf16: few rows and many want them.
            tables[layout.code, layout.fields] = 2 * layout.fields.table_bytes
    workspace = TABLES_BYTES + tile + sum(tables.values())
    parts |= Counter({"workspace": workspace, "compiler": COMPILER})
    parts["activations"] = running.values
    return Resident(dict(parts), loading + parts["other weights"])


def _of_layer(codec: Codec) -> Counter[str]:
    """Mapped and copied bytes of a layer that is multiplied with."""
    layout = layout_of(codec)
    if layout is None:
        return Counter({"planes and codes": codec.nbytes})
    if isinstance(layout, RingLayout):
        # What is stored beside the rings is kept as well: a scale and two seeds.
        others = codec.nbytes - layout.nbytes
        signs = HALF * (layout.rows + layout.columns)
        small = others + layout.late_bytes + signs + FP32 * (layout.padded + 1)
        return Counter({"planes and codes": layout.nbytes, "scales": small})
    codes = layout.rows * layout.row_bytes
    return Counter({"planes and codes": codes, "scales": _scales(codec, layout)})


def _scales(codec: Codec, layout: Layout) -> int:
    """Scales by rows, scales of columns, units, orders and offsets."""
    units = 0 if layout.width % layout.per_unit else layout.row_bytes // 16
    small = WHOLE * (3 * units + layout.blocks) + FP32 * layout.padded
    if isinstance(codec, MultiBinary):
        columns = FP32 * codec.planes * codec.block
        return HALF * codec.planes * layout.padded + columns + small
    assert isinstance(codec, UniformGrid), "other codecs have no layout"
    return 2 * HALF * codec.groups * layout.padded + small


def _touched(codec: Codec, tokens: int) -> int:
    """Of an embedding at most so much as it has, for each token the pages around its row."""
    row = max(PAGES, codec.nbytes // codec.rows)
    return min(codec.nbytes, tokens * row)
