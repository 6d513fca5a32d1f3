"""Under which names a checkpoint for others holds tensors: those that the model is published with.

A model here may have in several modules what its checkpoints hold as one tensor. An export puts the
rows together again, and stacks experts where the class in transformers reads nothing else.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qdc.frontend.held_in_parts import expert_stacks
from qdc.frontend.naming import stacks_experts
from qdc.frontend.native import NativeModel
from qdc.frontend.unrolled import DOWN, GATE_UP
from qdc.ir.keys import layer_of
from qdc.ir.parts import Part
from qdc.models.network import Network, fused_of


@dataclass(frozen=True)
class Published:
    """One tensor of an export."""

    places: tuple[tuple[str, ...], ...]
    """The model's own tensors that are its rows, in order, for each tensor that is stacked."""
    stacked: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(name for rows in self.places for name in rows)

    def join(self, read: Callable[[str], Tensor]) -> Tensor:
        """The tensor, of what ``read`` gives for each name."""
        whole = [_rows([read(name) for name in rows]) for rows in self.places]
        return torch.stack(whole) if self.stacked else whole[0]


def _rows(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def published_tensors(module: nn.Module, names: Iterable[str]) -> dict[str, Published]:
    """Every tensor that is written, in the order of what it is made of.

    Args:
        module: the model.
        names: of its tensors.
    """
    held = _held(module)
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(held[name].key if name in held else name, []).append(name)
    return {key: _published(parts, held) for key, parts in found.items()}


def published_layers(module: nn.Module) -> Mapping[str, str]:
    """Layers that are rows of a published one, each with the path of that."""
    fused = fused_of(module).items()
    rows = ((name, part) for name, part in fused if part.rows and part.place is None)
    return {layer_of(name): layer_of(part.key) for name, part in rows}


def stacked_layers(module: nn.Module) -> tuple[str, ...]:
    """Layers that are published as one of a stack."""
    return tuple(layer_of(name) for name, part in _held(module).items() if part.place is not None)


def _held(module: nn.Module) -> Mapping[str, Part]:
    """Which of the model's tensors are published within others."""
    if isinstance(module, Network):
        return module.fused
    if not isinstance(module, NativeModel) or not stacks_experts(module):
        return {}
    return {
        name: part
        for stack in expert_stacks(module.body)
        for key, whole in stack.items()
        if key.rpartition(".")[2] in (GATE_UP, DOWN)
        for name, part in whole.parts.items()
    }


def _published(names: list[str], held: Mapping[str, Part]) -> Published:
    """How tensors of one key make it up."""
    parts = [(held.get(name, Part(name)), name) for name in names]
    places: dict[int, list[tuple[tuple[int, int], str]]] = {}
    for part, name in parts:
        places.setdefault(part.place or 0, []).append((part.rows or (0, 0), name))
    ordered = tuple(tuple(name for _, name in sorted(places[place])) for place in sorted(places))
    return Published(ordered, stacked=any(part.place is not None for part, _ in parts))
