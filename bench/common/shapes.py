"""The linears of the published models that speed and memory are reckoned for."""

from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Model:
    """The sizes of a dense model."""

    name: str
    width: int
    keys: int
    """Rows of a key or value projection."""
    hidden: int
    vocabulary: int


@dataclass(frozen=True)
class Shape:
    """A linear, or the linears of a stage as one."""

    model: str
    layer: str
    rows: tuple[int, ...]
    """Of each joined linear."""
    columns: int
    codec: str = "multi-binary"


LLADA = Model("LLaDA-8B", 4096, 4096, 12288, 126464)
DREAM = Model("Dream-7B", 3584, 512, 18944, 152064)


def stages(model: Model) -> tuple[Shape, ...]:
    """The stages of a region, in order of execution."""
    name, width, keys, hidden = model.name, model.width, model.keys, model.hidden
    return (
        Shape(name, "q/k/v", (width, keys, keys), width),
        Shape(name, "q or attention out", (width,), width),
        Shape(name, "gate/up", (hidden, hidden), width),
        Shape(name, "down", (width,), hidden),
    )


def on_rings(model: Model) -> Iterator[Shape]:
    """The stages of a region on trellis codes."""
    for stage in stages(model):
        yield replace(stage, layer=f"{stage.layer}, trellis", codec="trellis")


def linears(model: Model) -> Iterator[Shape]:
    """Every stage, the linears of a stage alone where their shape is a new one, and the head."""
    seen: set[tuple[tuple[int, ...], int]] = set()
    alone = {"q/k/v": "k or v", "gate/up": "gate or up"}
    for stage in stages(model):
        yield stage
        seen.add((stage.rows, stage.columns))
        rows = stage.rows[-1:]
        square = rows == (model.width,) and stage.columns == model.width
        if stage.layer in alone and not square and (rows, stage.columns) not in seen:
            yield Shape(model.name, alone[stage.layer], rows, stage.columns)
    yield Shape(model.name, "head", (model.vocabulary,), model.width, "uniform")
