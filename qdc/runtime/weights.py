"""The tensors of an artifact, read one at a time, and where they go in a module on meta.

What is read here was checked by its header before; ``Codec.check`` looks at the data itself.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidArtifact
from qdc.format.weights import Weights
from qdc.ir.keys import file_key
from qdc.ir.types import Dimension
from qdc.numerics.finite import is_finite

Wanted = tuple[str | None, tuple[Dimension, ...]]
"""Dtype and shape of a stored tensor; None allows every floating dtype."""

ALIGNMENT = 64


@dataclass(frozen=True)
class StoredWeights(Weights):
    """An artifact whose names, dtypes and shapes fit its model, read from its files."""

    source: Checkpoint = field(kw_only=True)

    def plain(self, name: str) -> Tensor:
        """A tensor that is no part of a quantized layer, as it is stored.

        Raises:
            InvalidArtifact: it holds NaN or infinity.
        """
        tensor = self.source.tensor(name)
        if not is_finite(tensor):
            raise InvalidArtifact("a tensor holds NaN or infinity", where=[name])
        return tensor

    def stored(self, layer: str) -> dict[str, Tensor]:
        """The stored tensors of a quantized layer. Raises ``InvalidArtifact``."""
        codec = self.codecs[layer]
        stored = {
            suffix: self.source.tensor(file_key(layer, suffix)) for suffix in codec.specification()
        }
        codec.check(stored, layer)
        return stored


def dense_tensors(module: nn.Module) -> dict[str, Wanted]:
    """Every stored tensor of the module; a tied one stands under its first name alone."""
    tied = tied_names(module)
    state = module.state_dict().items()
    return {name: (None, tuple(tensor.shape)) for name, tensor in state if name not in tied}


def tied_names(module: nn.Module) -> dict[str, str]:
    """Further names of parameters that have two, each with the first name."""
    first = {parameter: name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[parameter] for name, parameter in every if first[parameter] != name}


def aligned(tensor: Tensor) -> Tensor:
    """The tensor at an address that torch itself would give it: a multiple of 64 bytes.

    A file has tensors anywhere, and a product with a single row, as of an expert that gets one
    token, is summed in another order where a weight is not at a multiple of 16 bytes.
    """
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def moved(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor on the device, in the dtype unless it is whole: positions and masks keep theirs."""
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


def place(
    module: nn.Module,
    state: Mapping[str, Tensor],
    tied: Mapping[str, str],
    replaced: Collection[str] = (),
) -> None:
    """Give a module on meta its tensors; what was tied is tied again.

    Args:
        module: whose tensors.
        state: those that are to be placed, by their first names.
        tied: further names, as ``tied_names`` gave them.
        replaced: paths of modules that have what they need.
    """
    parameters = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in state.items()}
    aliases = {name: first for name, first in tied.items() if first in state}
    for name, first in {**{name: name for name in state}, **aliases}.items():
        path, _, role = name.rpartition(".")
        if path in replaced:
            continue
        owner = module.get_submodule(path)
        setattr(owner, role, parameters[first] if role in owner._parameters else state[first])


@dataclass(frozen=True)
class Skeleton:
    """What a model on meta asks for, read before any of its modules is replaced."""

    names: tuple[str, ...]
    """Every stored tensor, as ``dense_tensors`` names them."""
    tied: Mapping[str, str]
    """Further names, as ``tied_names`` gives them."""

    @classmethod
    def of(cls, module: nn.Module) -> "Skeleton":
        """Read it off the model."""
        return cls(tuple(dense_tensors(module)), tied_names(module))

    def uses(self, layer: str) -> list[str]:
        """Paths of the modules that use a layer's weight: its own, and those tied to it."""
        return [layer, *(_owner(n) for n, first in self.tied.items() if first == file_key(layer))]

    def fill_others(
        self,
        module: nn.Module,
        weights: Weights,
        replaced: Collection[str],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Read and place the tensors of all modules that were not replaced.

        Args:
            module: the model.
            weights: where its tensors come from.
            replaced: paths of modules that have what they need.
            device: where the tensors go.
            dtype: what they are turned to.
        """
        aliases = {first for name, first in self.tied.items() if _owner(name) not in replaced}
        state = {
            name: moved(weights.dense(name), device, dtype)
            for name in self.names
            if _owner(name) not in replaced or name in aliases
        }
        place(module, state, self.tied, replaced)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
