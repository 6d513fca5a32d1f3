"""Layers in qdc's format with random content, made on the device: nothing is compiled for them.

Signs are fair coins and scales lie around those of compiled layers, so that outputs are of the size
of the inputs; orders are 2 with as many 1 as 3 among them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qdc.format.codec import Codec
from qdc.format.multibinary import MultiBinary
from qdc.format.trelliscode import TrellisCode
from qdc.format.uniformgrid import UniformGrid
from qdc.format.weights import Weights
from qdc.numerics.hadamard import SEEDS
from qdc.numerics.trellis import EIGHTHS

BLOCK = 128
EVERY = 20
"""Of so many blocks one has order 1 and one order 3."""


def orders(blocks: int) -> tuple[int, ...]:
    """Mean exactly 2."""
    found = [2] * blocks
    for first in range(0, blocks - EVERY // 2, EVERY):
        found[first], found[first + EVERY // 2] = 1, 3
    return tuple(found)


def codec_of(kind: str, rows: int, columns: int) -> Codec:
    """The codec that the preset ``default`` gives such a layer, for ``uniform`` a vocabulary.

    ``trellis`` is what ``trellis-lower`` makes by default.
    """
    if kind == "trellis":
        return TrellisCode.of(rows, columns, 2 * EIGHTHS, height=128, width=1)
    if kind == "uniform":
        return UniformGrid(rows=rows, columns=columns, group=-(-columns // 8) * 8, bits=8)
    return MultiBinary(rows=rows, columns=columns, block=BLOCK, orders=orders(-(-columns // BLOCK)))


def random_stored(codec: Codec, generator: torch.Generator) -> dict[str, Tensor]:
    """Stored tensors of a layer, on the generator's device."""
    return dict(_tensors(codec, generator))


def _tensors(codec: Codec, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    device, gain = generator.device, codec.columns**-0.5
    for suffix, kind in codec.specification().items():
        shape = tuple(int(size) for size in kind.shape)
        if suffix == "orders":
            assert isinstance(codec, MultiBinary)
            yield suffix, torch.tensor(codec.orders, dtype=torch.uint8, device=device)
        elif suffix == "seeds":
            # The rotation of inputs is one for all, as it is for layers that read one value.
            drawn = torch.randint(SEEDS, (1,), device=device, generator=generator)
            yield suffix, torch.cat([torch.ones_like(drawn), drawn]).int()
        elif kind.dtype == "u8":
            bytes_ = torch.randint(
                256, shape, dtype=torch.uint8, device=device, generator=generator
            )
            yield suffix, bytes_
        else:
            noise = torch.rand(shape, device=device, generator=generator) + 0.5
            step = gain if isinstance(codec, TrellisCode) else gain / 64
            size = {"col_scale": 1.0, "scale": step, "minimum": -2 * gain}.get(suffix, gain)
            yield suffix, (noise * size).half()


@dataclass(frozen=True)
class RandomWeights(Weights):
    """A whole model of random weights, drawn when they are asked for."""

    shapes: Mapping[str, tuple[int, ...]] = field(kw_only=True)
    """Of every tensor, by name."""
    generator: torch.Generator = field(kw_only=True)

    def plain(self, name: str) -> Tensor:
        """A gain of 1, or a matrix whose outputs are as large as its inputs."""
        shape, device = self.shapes[name], self.generator.device
        if len(shape) == 1:
            return torch.ones(shape, device=device)
        noise = torch.randn(shape, generator=self.generator, device=device, dtype=torch.bfloat16)
        found: Tensor = noise * shape[-1] ** -0.5
        return found

    def stored(self, layer: str) -> dict[str, Tensor]:
        """The tensors of a quantized layer."""
        return random_stored(self.codecs[layer], self.generator)
