"""Run artifacts with their weights packed: each is decoded for the moment in which it is used.

As exact as decoded weights and slower, on any device, for every codec, a plugin's among them. What
it writes is the portable folder.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from qdc import Codec
from qdc.backends.reference import Reference
from qdc.errors import UnsupportedModel
from qdc.format.weights import Weights
from qdc.pipeline.backendbase import Runtime
from qdc.runtime.integers import put_integers
from qdc.runtime.weights import Skeleton


class PackedModule(nn.Module):
    """A linear or an embedding whose weight exists only while it is used."""

    bias: Tensor | None

    def __init__(
        self, codec: Codec, stored: Mapping[str, Tensor], bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.codec, self.suffixes, self.dtype = codec, tuple(stored), dtype
        for suffix, tensor in stored.items():
            self.register_buffer(suffix, tensor)
        self.register_buffer("bias", bias)

    def weight(self) -> Tensor:
        """Decode it: ``[rows, columns]``."""
        stored = {suffix: self.get_buffer(suffix) for suffix in self.suffixes}
        return self.codec.dense(self.codec.unpack(stored)).to(self.dtype)

    def forward(self, value: Tensor) -> Tensor:
        """``x W^T`` and the bias of numbers; rows of W of tokens."""
        if not value.is_floating_point():
            return embedding(value, self.weight())
        return linear(value, self.weight(), self.bias)


class OnTheFlyRuntime(Runtime):
    """Puts packed modules in the place of linears and embeddings."""

    follows_activations: ClassVar[bool] = True

    def check(self, module: nn.Module, codecs: Mapping[str, Codec]) -> None:
        """Refuse weights of modules of other kinds."""
        used = {path for layer in codecs for path in Skeleton.of(module).uses(layer)}
        kinds = {path: type(module.get_submodule(path)) for path in sorted(used)}
        odd = [f"{p}: {k.__name__}" for p, k in kinds.items() if k not in (nn.Linear, nn.Embedding)]
        if odd:
            help_ = "load with the backend reference"
            raise UnsupportedModel("neither linears nor embeddings", where=odd, help=help_)

    def fill(self, module: nn.Module, weights: Weights) -> None:
        """Replace the modules of quantized layers, then place all other tensors."""
        skeleton = Skeleton.of(module)
        replaced = put_integers(module, weights, self.device, self.dtype)
        for layer, codec in weights.codecs.items():
            if layer in replaced:
                continue
            stored = {s: tensor.to(self.device) for s, tensor in weights.stored(layer).items()}
            for path in skeleton.uses(layer):
                bias = None
                if getattr(module.get_submodule(path), "bias", None) is not None:
                    bias = weights.plain(f"{path}.bias").to(self.device, self.dtype)
                module.set_submodule(path, PackedModule(codec, stored, bias, self.dtype))
                replaced.add(path)
        skeleton.fill_others(module, weights, replaced, self.device, self.dtype)


class OnTheFly(Reference):
    """Write the portable folder; run it with weights that stay packed."""

    name: ClassVar[str] = "on-the-fly"

    def runtime(self, device: torch.device, dtype: torch.dtype | None) -> Runtime:
        """Packed modules, with activations in fp32 if not told otherwise."""
        return OnTheFlyRuntime(device, torch.float32 if dtype is None else dtype)
