"""Put packed modules in the place of quantized layers: nothing dense is made or stays."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qdc.errors import UnsupportedModel
from qdc.format.codec import Codec
from qdc.format.weights import Weights
from qdc.ir.keys import file_key
from qdc.pipeline.backendbase import Runtime
from qdc.runtime.joining import Front, join_stages
from qdc.runtime.weights import Skeleton

from .checking import Checked
from .modules import PackedEmbedding, PackedLinear
from .parts import Part, can_join, refuse_codecs
from .turning import CheckedRotation, InputRotation


@dataclass(frozen=True)
class PackedRuntime(Runtime):
    """Packed linears, joined where the code shows that they read one value, and embeddings."""

    rotates: ClassVar[bool] = True

    checked: bool
    """Compare every output with the reference formula, at each call."""

    def check(self, module: nn.Module, codecs: Mapping[str, Codec]) -> None:
        """Refuse codecs without a kernel, and weights of other modules than linears."""
        refuse_codecs(codecs)
        skeleton = Skeleton.of(module)
        odd = [
            f"{path}: {type(module.get_submodule(path)).__name__}"
            for layer in codecs
            for path in skeleton.uses(layer)
            if type(module.get_submodule(path)) not in (nn.Linear, nn.Embedding)
        ]
        if odd:
            raise UnsupportedModel(
                "the triton backend replaces plain linears and embeddings, and these are neither",
                where=odd,
                help="load with the backend reference",
            )

    def fill(self, module: nn.Module, weights: Weights) -> None:
        """Read stage by stage: beside the model there are the stored tensors of one stage."""
        skeleton = Skeleton.of(module)
        builder = _Builder(self, module, weights, skeleton)
        gone = frozenset[str]()
        if weights.traceable:
            linears = {
                path
                for path in weights.codecs
                if type(module.get_submodule(path)) is nn.Linear and skeleton.uses(path) == [path]
            }
            gone = join_stages(
                module,
                weights.stages,
                linears,
                builder.joinable,
                builder.linear,
                Front(weights.rotation, builder.front),
            )
        replaced = set(gone)
        for layer in weights.codecs:
            for path, packed in () if layer in gone else builder.modules(layer):
                above, _, name = path.rpartition(".")
                module.get_submodule(above).add_module(name, packed)
                replaced.add(path)
        skeleton.fill_others(module, weights, replaced, self.device, self.dtype)


class _Builder:
    """Makes packed modules from stored tensors, reading each when it is its turn."""

    def __init__(
        self, runtime: PackedRuntime, module: nn.Module, weights: Weights, skeleton: Skeleton
    ) -> None:
        self.runtime, self.root, self.weights, self.skeleton = runtime, module, weights, skeleton
        self.rotated = set[str]()
        """Paths of the linears whose inputs come rotated: a module in front of them does it."""

    def joinable(self, paths: Sequence[str]) -> bool:
        """Whether one packed linear can stand for these: a matter of codecs, and of rotations."""
        turns = {self.weights.rotation(path) for path in paths}
        return len(turns) == 1 and can_join([self.weights.codecs[path] for path in paths])

    def front(self, paths: Sequence[str]) -> nn.Module:
        """The rotation of what several linears read."""
        self.rotated.update(paths)
        return self._rotation(paths)

    def _rotation(self, paths: Sequence[str]) -> nn.Module:
        seed = self.weights.rotation(paths[0])
        assert seed is not None, "what is not rotated has no rotation in front of it"
        columns = self.weights.codecs[paths[0]].columns
        made = InputRotation(columns, seed, self.runtime.device)
        return CheckedRotation(made, ", ".join(paths)) if self.runtime.checked else made

    def linear(self, paths: Sequence[str]) -> nn.Module:
        """One packed linear for several."""
        parts = [self.part(path, path) for path in paths]
        packed = PackedLinear(parts, self.runtime.dtype, self.runtime.device)
        return self._checked(packed, parts, ", ".join(paths))

    def modules(self, layer: str) -> Iterator[tuple[str, nn.Module]]:
        """What stands for a single layer, and for those whose weight is tied to it, by path.

        They hold the same tensors as far as they lay them out alike.
        """
        shared: dict[str, Tensor] = {}
        for path in self.skeleton.uses(layer):
            part = self.part(layer, path)
            packed: nn.Module
            if type(self.root.get_submodule(path)) is nn.Linear:
                packed = PackedLinear([part], self.runtime.dtype, self.runtime.device)
            else:
                packed = PackedEmbedding(part, self.runtime.dtype, self.runtime.device)
            for name, buffer in list(packed.named_buffers(recurse=False)):
                first = shared.setdefault(name, buffer)
                if torch.equal(first, buffer):
                    packed.register_buffer(name, first)
            made = self._checked(packed, [part], path)
            turned = path == layer and self.weights.rotation(layer) is not None
            if turned and layer not in self.rotated:
                made = nn.Sequential(
                    OrderedDict(rotation=self._rotation([layer]), linear=made)
                ).eval()
            yield path, made

    def part(self, layer: str, path: str) -> Part:
        """The stored tensors of a layer, and the bias of the module that they are for."""
        bias = self.root.get_submodule(path)._parameters.get("bias")
        return Part(
            self.weights.codecs[layer],
            self.weights.stored(layer),
            None if bias is None else self._bias(file_key(path, "bias")),
        )

    def _bias(self, name: str) -> Tensor:
        return self.weights.plain(self.skeleton.tied.get(name, name))

    def _checked(self, packed: nn.Module, parts: list[Part], label: str) -> nn.Module:
        made = Checked(packed, parts, label) if self.runtime.checked else packed
        return made.requires_grad_(False).eval()
