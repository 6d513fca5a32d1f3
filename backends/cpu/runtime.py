"""Put packed modules in the place of quantized layers: planes and codes stay in their file."""

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from qdc.format.codec import Codec
from qdc.format.weights import Weights
from qdc.ir.keys import file_key
from qdc.pipeline.backendbase import Runtime
from qdc.runtime.integers import put_integers
from qdc.runtime.weights import Skeleton

from . import support
from .modules import PackedEmbedding, PackedLinear
from .packing import layout_of
from .products import Arithmetic

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CpuRuntime(Runtime):
    """Packed linears and embeddings; a module of another kind gets its decoded weight."""

    follows_activations: ClassVar[bool] = True
    rotates: ClassVar[bool] = True

    arithmetic: Arithmetic

    def check(self, module: nn.Module, codecs: Mapping[str, Codec]) -> None:
        """Nothing is refused; what will be slow, or takes the memory of a dense weight, is said."""
        skeleton = Skeleton.of(module)
        used = [path for layer in codecs for path in skeleton.uses(layer)]
        odd = [path for path in used if not _can_be_packed(module.get_submodule(path))]
        if odd:
            log.warning(
                "%d quantized weights are decoded when the model is loaded, since what reads them "
                "is neither a linear nor an embedding: %s",
                len(odd),
                _some(odd),
            )
        if support.has_compiler():
            _tell_slow(codecs)

    def fill(self, module: nn.Module, weights: Weights) -> None:
        """Read layer by layer; beside what is mapped there are the scales of one layer twice."""
        skeleton = Skeleton.of(module)
        replaced = put_integers(module, weights, self.device, self.dtype)
        for layer, codec in weights.codecs.items():
            if layer in replaced:
                continue
            uses = skeleton.uses(layer)
            packed = [path for path in uses if _can_be_packed(module.get_submodule(path))]
            if not packed:
                continue
            stored = weights.stored(layer)
            for path in packed:
                old = module.get_submodule(path)
                bias = self._bias(old, path, weights, skeleton)
                turn = weights.rotation(layer) if path == layer else None
                module.set_submodule(path, self._made(old, codec, stored, bias, turn))
                replaced.add(path)
        skeleton.fill_others(module, weights, replaced, self.device, self.dtype)

    def _made(
        self,
        old: nn.Module,
        codec: Codec,
        stored: Mapping[str, Tensor],
        bias: Tensor | None,
        turn: int | None,
    ) -> nn.Module:
        made: nn.Module
        if type(old) is nn.Linear:
            made = PackedLinear(codec, stored, bias, self.dtype, self.arithmetic, turn)
        else:
            made = PackedEmbedding(codec, stored, self.dtype)
        return made.requires_grad_(False).eval()

    def _bias(
        self, old: nn.Module, path: str, weights: Weights, skeleton: Skeleton
    ) -> Tensor | None:
        if old._parameters.get("bias") is None:
            return None
        name = file_key(path, "bias")
        # Rounded as it would be beside dense weights, so that both compute the same.
        return weights.plain(skeleton.tied.get(name, name)).to(self.dtype)


def _can_be_packed(module: nn.Module) -> bool:
    if type(module) is nn.Embedding:
        return module.max_norm is None
    return type(module) is nn.Linear


def _tell_slow(codecs: Mapping[str, Codec]) -> None:
    """Name codecs that no kernel reads: they are decoded at every call."""
    found: dict[str, list[str]] = defaultdict(list)
    for layer, codec in codecs.items():
        if layout_of(codec) is None:
            found[codec.name].append(layer)
    for name, layers in found.items():
        log.warning(
            "%d layers are stored as %s, for which the backend cpu has no kernel: they are decoded "
            "at every call, which saves memory and takes long; %s",
            len(layers),
            name,
            support.REFERENCE,
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
