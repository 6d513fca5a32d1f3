"""Whether a model keeps segments apart when its attention does.

Padding is left out of statistics, and documents of one window are kept apart, by a mask of
attention alone. That is right if nothing else joins positions. So every node is tried on small
random values: what stands in a segment is changed, and nothing outside of it may change with it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.errors import UnsupportedModel
from qdc.frontend.tracer import Program
from qdc.ir.graph import EMBEDDING, LINEAR, Node
from qdc.ir.routing import GIVE, ROUTED, ROUTER
from qdc.ir.tensors import torch_dtype
from qdc.ir.types import Dimension
from qdc.models.layers import Attention
from qdc.streaming.batches import PADDING, Sight
from qdc.streaming.execute import Executor

SAFE = frozenset({"input", LINEAR, EMBEDDING, ROUTER, "take", GIVE})
"""Operations that are known to work token by token; the weights of most are large."""
RAW = "raw-linear"
"""A linear whose weight is of no module: one of the model's parameters, or a value."""
PADDED = torch.tensor([[0, 0, 0, 0, PADDING, PADDING], [0, 0, PADDING, PADDING, PADDING, PADDING]])
SEVERAL = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 1, 2]])
"""Segments to try: two rows, as they are drawn."""
PLACE = ("B", "L", "B*L")
"""Dimensions that count positions."""


class _Change(NamedTuple):
    """One change of the values in a segment."""

    segments: Tensor
    """``i64[2, 6]``."""
    here: Tensor
    """``bool[2, 6]``: the positions whose values change."""


def require_apart(program: Program, *, isolate: bool) -> None:
    """Refuse a model that mixes segments elsewhere than in an attention that takes a mask.

    Args:
        program: the traced model.
        isolate: whether segments are documents; else one document a row, and padding behind it.

    Raises:
        UnsupportedModel: names the nodes that mix them, and what to choose instead.
    """
    help = "use pack=documents" + (" without isolate, or pack=pad" if isolate else "")
    blocks = [
        path
        for path, leaf in program.module.named_modules()
        if isinstance(leaf, Attention) and leaf.block is not None
    ]
    if isolate and blocks:
        raise UnsupportedModel(
            "attention of this model goes by blocks, which are counted from the beginning of a "
            "window: documents behind the first would be cut into other blocks than alone",
            where=blocks,
            help=help,
        )
    odd = [f"%{stage.value}" for r in program.graph.regions for stage in r.stages
           if not _is_by_token(program.graph[stage.value])]  # fmt: skip
    if odd and not isolate:
        raise UnsupportedModel(
            "layers of this model read something else than a value for each token, of which "
            "padding could be left out",
            where=odd,
            help=help,
        )
    trial = _Trial(program, isolate=isolate)
    mixing = [
        f"%{node.name}" for node in program.graph if node.op not in SAFE and trial.mixes(node)
    ]
    if mixing:
        what = "documents of a window" if isolate else "padding and tokens"
        raise UnsupportedModel(
            f"the model mixes {what} elsewhere than in an attention that takes a mask",
            where=mixing,
            help=help,
        )


def _is_by_token(node: Node) -> bool:
    """Whether a value has a row for each token, in the order of the tokens."""
    shape = node.type.shape
    return shape[:1] == (ROUTED,) or [s for s in shape[:-1] if s != 1] in (["B", "L"], ["B*L"])


class _Trial:
    """Runs nodes one by one on values that were never computed."""

    def __init__(self, program: Program, *, isolate: bool) -> None:
        self.graph, self.isolate = program.graph, isolate
        self.executor = Executor(program, torch.device("cpu"))
        self.generator = torch.Generator().manual_seed(0)
        segments = SEVERAL if isolate else PADDED
        names = sorted(set(segments.flatten().tolist())) if isolate else [PADDING]
        self.changes = [_Change(segments, segments == name) for name in names]
        rows, length = segments.shape
        self.sizes = {"B": rows, "L": length, "B*L": rows * length}

    def mixes(self, node: Node) -> bool:
        """Whether a change in a segment changes the node's value outside of it."""
        inputs = [
            self.graph[name] for name in node.inputs if name not in self.executor.order.absent
        ]
        shapes = [each.type.shape for each in (*inputs, node)]
        if any(ROUTED in shape for shape in shapes):
            return False  # rows of single tokens, and what adds them up token by token
        moving = [each for each in inputs if self._has_data(each)]
        if not moving or (node.op == RAW and len(node.inputs) == 1):
            return False
        if not all(s in PLACE for shape in shapes for s in shape if isinstance(s, str)):
            return True
        parameters = {p.role: self._normal(p.shape) for p in node.parameters}
        plain = {each.name: self._value(each) for each in inputs}
        return any(self._reaches(node, plain, moving, parameters, each) for each in self.changes)

    def _reaches(
        self,
        node: Node,
        plain: dict[str, Tensor],
        moving: list[Node],
        parameters: dict[str, Tensor],
        change: _Change,
    ) -> bool:
        changed = dict(plain)
        for each in moving:
            other = self._other(plain[each.name])
            changed[each.name] = torch.where(_at(each, change.here), other, plain[each.name])
        sizes, sight = (self.sizes["B"], self.sizes["L"]), Sight(change.segments)
        before, after = (
            self.executor.execute(node.name, values, parameters, sizes, sight)
            for values in (plain, changed)
        )
        return bool((_differ(before, after) & ~_at(node, change.here)).any())

    def _has_data(self, node: Node) -> bool:
        """Whether a value depends on the tokens of each row, as far as its type says.

        Whole numbers of documents in one window may count the positions before: positions go on.
        """
        floats = node.type.dtype.startswith(("f", "bf"))
        places = {part for s in node.type.shape if isinstance(s, str) for part in s.split("*")}
        return places >= {"B", "L"} and (floats or not self.isolate)

    def _value(self, node: Node) -> Tensor:
        shape = self._shape(node.type.shape)
        kind = torch_dtype(node.type.dtype)
        if kind.is_floating_point:
            return self._normal(shape)
        return (
            torch.ones(shape, dtype=kind) if kind == torch.bool else torch.zeros(shape, dtype=kind)
        )

    @staticmethod
    def _other(value: Tensor) -> Tensor:
        if value.is_floating_point():
            return 3 * value.flip(0) + 7
        return ~value if value.dtype == torch.bool else value + 1

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def _shape(self, shape: tuple[Dimension, ...]) -> tuple[int, ...]:
        return tuple(s if isinstance(s, int) else self.sizes[s] for s in shape)


def _at(node: Node, here: Tensor) -> Tensor:
    """Which elements of a value belong to these positions, as a mask that broadcasts.

    Where it has two axes of positions, as scores have, an element belongs to both.
    """
    shape = node.type.shape
    found = torch.zeros((1,) * len(shape), dtype=torch.bool)
    rows = [axis for axis, size in enumerate(shape) if size == "B"]
    for axis, kind in _axes(shape):
        if kind == "B*L":
            part, axes = here.flatten(), [axis]
        elif rows and rows[0] < axis:
            part, axes = here, [rows[0], axis]
        elif rows:
            part, axes = here.T, [axis, rows[0]]
        else:
            part, axes = here.any(0), [axis]
        sizes = [1] * len(shape)
        for place, size in zip(axes, part.shape, strict=True):
            sizes[place] = size
        found = found | part.reshape(sizes)
    return found


def _axes(shape: tuple[Dimension, ...]) -> Iterator[tuple[int, str]]:
    for axis, size in enumerate(shape):
        if size in ("L", "B*L"):
            yield axis, str(size)


def _differ(before: Tensor, after: Tensor) -> Tensor:
    if not before.is_floating_point():
        return before != after
    return ~torch.isclose(before, after, rtol=1e-4, atol=1e-5, equal_nan=True)
