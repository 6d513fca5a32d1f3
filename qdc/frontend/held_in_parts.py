"""Tensors that a checkpoint holds as one and a module as several: fused rows, stacked experts.

Families may be published with queries, keys and values in one tensor. Experts come one by one, or
stacked as transformers holds them, ``gate_up_proj`` and ``down_proj`` of three axes, or with
``gate_proj`` and ``up_proj`` apart. A module has a linear for each, whichever it was.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCheckpoint
from qdc.frontend.unrolled import DOWN, GATE_UP
from qdc.ir.keys import file_key
from qdc.ir.parts import Part, stacked
from qdc.models.experts import Expert
from qdc.models.network import fused_of


class Whole(NamedTuple):
    """A tensor that stands for several."""

    shape: tuple[int, ...]
    parts: dict[str, Part]
    """By their names in the module."""


def held_whole(module: nn.Module) -> dict[str, Whole]:
    """Every tensor that a checkpoint of a module may hold in the place of several, by its key."""
    found: dict[str, Whole] = {}
    for name, part in fused_of(module).items():
        if part.place is not None:  # as in the stacks of any model, below
            continue
        shape, parts = found.get(part.key, Whole((), {}))
        if part.rows is None:
            found[part.key] = Whole(tuple(module.get_parameter(name).shape), {name: part})
            continue
        columns = module.get_parameter(name).shape[1:]
        rows = max(part.rows[1], *shape[:1]) if shape else part.rows[1]
        found[part.key] = Whole((rows, *columns), {**parts, name: part})
    for stack in expert_stacks(module):
        found |= stack
    return found


def expert_stacks(module: nn.Module) -> Iterator[dict[str, Whole]]:
    """For each block with experts the stacks that may stand for them, by key."""
    for path, holder in module.named_modules():
        numbered = {name: e for name, e in holder.named_children() if isinstance(e, Expert)}
        if numbered:
            yield _stacks(path, numbered)


def _stacks(path: str, experts: dict[str, Expert]) -> dict[str, Whole]:
    some = next(iter(experts.values()))
    gate, up, down = some.names
    kinds = {GATE_UP: (gate, up), DOWN: (down,), gate: (gate,), up: (up,), down: (down,)}
    found = {}
    for leaf, projections in kinds.items():
        sizes = [some.get_parameter(file_key(each)).shape for each in projections]
        places = {
            place: tuple(
                (file_key(f"{path}.{number}.{each}"), int(size[0]))
                for each, size in zip(projections, sizes, strict=True)
            )
            for place, number in enumerate(experts)
        }
        rows = sum(int(size[0]) for size in sizes)
        shape = (len(experts), rows, int(sizes[0][1]))
        found[f"{path}.{leaf}"] = Whole(shape, stacked(f"{path}.{leaf}", places))
    return found


def require_shape(checkpoint: Checkpoint, key: str, whole: Whole) -> None:
    """Refuse a tensor that is not what its parts make up together."""
    header = checkpoint.headers[key]
    if header.shape != whole.shape:
        wanted = ", ".join(map(str, whole.shape))
        raise InvalidCheckpoint(
            "tensors do not have the shape that config.json gives",
            where=[f"{key}: {header}, need [{wanted}] for {len(whole.parts)} layers"],
            help="fetch the shards again, and see that config.json belongs to them",
        )
