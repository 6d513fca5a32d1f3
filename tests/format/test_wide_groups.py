"""Groups that a configuration says to be far wider than the layer cost no memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qdc.format.bitplanes import BitPlanes
from qdc.format.codec import Codec
from qdc.format.maskedbinary import MaskedBinary
from qdc.format.partitionedbinary import PartitionedBinary
from qdc.format.sharedtable import SharedTable
from qdc.format.shiftedternary import ShiftedTernary
from qdc.format.variablewidth import VariableWidth

ROWS, COLUMNS, WIDE = 3, 8, 1 << 16
CODECS: list[Codec] = [
    kind.model_validate({"rows": ROWS, "columns": COLUMNS, **fields})
    for kind, fields in (
        (BitPlanes, {"group": WIDE, "planes": 2, "offset": True}),
        (SharedTable, {"group": WIDE, "planes": 2, "offset": True, "lines": 2}),
        (VariableWidth, {"group": WIDE, "bits": (2,)}),
        (PartitionedBinary, {"block": WIDE, "form": "mean"}),
        (MaskedBinary, {"group": WIDE, "salient": 0}),
        (ShiftedTernary, {"group": WIDE}),
    )
]
LARGEST = 32 * ROWS * COLUMNS
DTYPES = {"u8": torch.uint8, "f16": torch.float16}


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the most numbers that any result has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.numbers = max(self.numbers, found.numel())
        return found


def zeros(codec: Codec) -> dict[str, Tensor]:
    """Stored tensors that hold nothing; tags of widths are those of two bits."""
    found = {
        suffix: torch.zeros([int(n) for n in kind.shape], dtype=DTYPES[kind.dtype])
        for suffix, kind in codec.specification().items()
    }
    if "widths" in found:
        found["widths"] += 1
    return found


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_group_is_not_written_out_beyond_the_layer(codec: Codec) -> None:
    stored = zeros(codec)
    with Largest() as largest:
        codec.check(stored, "q")
        working = codec.unpack(stored)
        assert codec.dense(working).shape == (ROWS, COLUMNS)
        if not isinstance(codec, SharedTable):  # the one that has nothing to train
            assert codec.relax(working, torch.zeros(ROWS, COLUMNS)).dense().shape == (ROWS, COLUMNS)
    assert 0 < largest.numbers <= LARGEST
