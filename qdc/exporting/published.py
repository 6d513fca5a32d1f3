"""Under which names a checkpoint for others holds tensors: those that the family is published with.

A model here may have in several modules what its checkpoints hold as one tensor: an export puts
the rows together again.
"""

from collections.abc import Iterable, Mapping

from torch import nn

from qdc.ir.keys import layer_of
from qdc.models.decoder import Decoder


def published_tensors(module: nn.Module, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Every tensor that is written, and the model's own that are its rows, in their order.

    Args:
        module: the model.
        names: of its tensors.
    """
    fused = module.fused if isinstance(module, Decoder) else {}
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(fused[name].key if name in fused else name, []).append(name)
    return {
        key: tuple(sorted(parts, key=lambda name: fused[name].rows or (0, 0)))
        if len(parts) > 1
        else tuple(parts)
        for key, parts in found.items()
    }


def published_layers(module: nn.Module) -> Mapping[str, str]:
    """Layers that are rows of a published one, each with the path of that."""
    fused = module.fused if isinstance(module, Decoder) else {}
    return {layer_of(name): layer_of(part.key) for name, part in fused.items()}
