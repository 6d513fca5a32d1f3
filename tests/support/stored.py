"""Random stored tensors of codecs."""

from collections.abc import Iterator

import torch
from torch import Tensor

from qdc.format.codec import Codec
from qdc.format.multibinary import MultiBinary
from qdc.numerics.hadamard import SEEDS


def random_stored(codec: Codec, seed: int = 0) -> dict[str, Tensor]:
    """Stored tensors of ``multi-binary``, ``uniform`` or ``trellis``; scales of both signs."""
    generator = torch.Generator().manual_seed(seed)
    return dict(_tensors(codec, generator))


def _tensors(codec: Codec, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    for suffix, kind in codec.specification().items():
        shape = [int(size) for size in kind.shape]
        if suffix == "orders" and isinstance(codec, MultiBinary):
            yield suffix, torch.tensor(codec.orders, dtype=torch.uint8)
        elif kind.dtype == "u8":
            yield suffix, torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        elif kind.dtype == "i32":
            yield suffix, torch.randint(0, SEEDS, shape, generator=generator).int()
        else:
            yield suffix, (torch.rand(shape, generator=generator) - 0.3).half()
