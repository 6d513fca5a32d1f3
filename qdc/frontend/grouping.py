"""Which calls of an exported graph become one node of the layer graph.

Left out: calls that nothing reads, and calls that hand on what they get (dropout outside training,
casts to the same dtype, slices that cut nothing). Put together: all that a module without children
computes, a norm for example, if it gives one value. Linears and embeddings stay nodes of their own.
"""

import functools
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten
WEIGHTED = (aten.linear.default, aten.embedding.default)
CASTS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default)
NEVER_CHANGES = (aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default)
SLICED = re.compile(r"slice\((None|\d+), (?:None|-?\d+), (None|\d+)\)\.(\d+)")
"""A member of a slice of a module list, as exports write its path."""
WHOLE = (1 << 63) - 1
"""The end of a slice that cuts nothing, as exports write it."""


@dataclass(frozen=True)
class CallGroup:
    """Calls that become one node."""

    calls: tuple[fx.Node, ...]
    """Those with a tensor as value, in order; the last one's is the node's."""
    module: str
    """Path of the innermost module that the calls were made in."""
    whole: bool
    """Whether they are all that the module computes."""


class Calls:
    """The live calls of an exported graph, and what each of them reads."""

    def __init__(self, graph: fx.Graph, result: fx.Node) -> None:
        """Follow ``result`` back to the inputs."""
        self._same: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            source = _handed_on(node)
            if source is not None:
                self._same[node] = self.resolve(source)
        self.result = self.resolve(result)
        alive, pending = {self.result}, [self.result]
        while pending:
            for read in self.reads(pending.pop()):
                if read not in alive:
                    alive.add(read)
                    pending.append(read)
        self.tensors = tuple(n for n in graph.nodes if n in alive and n.op == "call_function")
        """Calls whose value is a tensor, in execution order."""
        self.readers: dict[fx.Node, list[fx.Node]] = {}
        for node in self.tensors:
            for read in self.reads(node):
                self.readers.setdefault(read, []).append(node)

    def resolve(self, node: fx.Node) -> fx.Node:
        """The call whose value this one hands on, or itself."""
        return self._same.get(node, node)

    def reads(self, node: fx.Node) -> Iterator[fx.Node]:
        """Tensors that a call reads, also through the tuples that it takes apart."""
        for read in node.all_input_nodes:
            if gives_tensor(read):
                yield self.resolve(read)
            elif isinstance(read.meta.get("val"), tuple | list):
                yield from self.reads(read)

    def with_tuples(self, calls: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        """The calls, each after the calls that give the tuples which it takes apart."""
        found: dict[fx.Node, None] = {}

        def add(node: fx.Node) -> None:
            for read in node.all_input_nodes:
                if isinstance(read.meta.get("val"), tuple | list):
                    add(read)
            found[node] = None

        for call in calls:
            add(call)
        return tuple(found)


def group_calls(calls: Calls, module: nn.Module, prefix: str) -> tuple[CallGroup, ...]:
    """Put calls together.

    Args:
        calls: the live calls.
        module: the exported module; its tree says which modules have no children.
        prefix: start of the paths that the export notes and ``module`` does not know.
    """
    runs: list[tuple[str, list[fx.Node]]] = []
    for node in calls.tensors:
        place = (stack(node, prefix, keep_counts=True) or [""])[-1]
        if runs and runs[-1][0] == place:
            runs[-1][1].append(node)
        else:
            runs.append((place, [node]))
    times = Counter(place for place, _ in runs)
    often = {place for place, count in times.items() if count > 1}
    groups: list[CallGroup] = []
    for place, members in runs:
        path = place.partition("@")[0]
        childless = bool(path) and not any(True for _ in module.get_submodule(path).children())
        whole = childless and place not in often and _is_one_value(members, calls)
        if whole:
            groups.append(CallGroup(tuple(members), path, whole=True))
        else:
            groups.extend(CallGroup((member,), path, whole=False) for member in members)
    return tuple(groups)


def stack(node: fx.Node, prefix: str, *, keep_counts: bool = False) -> list[str]:
    """Paths of the modules that a call was made in, outermost first, without the prefix.

    A module that is called again has ``@1`` behind its path; ``keep_counts`` leaves it there.
    """
    paths = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    inside = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
    return [_plain_path(path, keep_counts) for path in inside]


def gives_tensor(node: fx.Node) -> bool:
    """Whether the value is one tensor."""
    return isinstance(node.meta.get("val"), Tensor)


@functools.cache
def _plain_path(path: str, keep_counts: bool) -> str:
    """The path of a module, also where it was reached through a slice of a module list."""
    while found := SLICED.search(path):
        start, step, place = (int(text) if text != "None" else None for text in found.groups())
        index = (start or 0) + (step or 1) * (place or 0)
        path = f"{path[: found.start()]}{index}{path[found.end() :]}"
    return path if keep_counts else re.sub(r"@\d+", "", path)


def _is_one_value(members: list[fx.Node], calls: Calls) -> bool:
    """Whether only the last call's value is read outside, and no linear or embedding is inside."""
    if len(members) > 1 and any(member.target in WEIGHTED for member in members):
        return False
    inside = set(members)
    given = {m for m in members if any(r not in inside for r in calls.readers.get(m, ()))}
    return given | ({calls.result} & inside) == {members[-1]}


def _handed_on(node: fx.Node) -> fx.Node | None:
    """What a call hands on unchanged, or None if it computes something."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source, target = node.args[0], node.target
    if not gives_tensor(source) or not gives_tensor(node):
        return None
    idle = (
        target in NEVER_CHANGES
        or (target is aten.dropout.default and node.args[2] is False)
        or (target in CASTS and node.meta["val"].dtype == source.meta["val"].dtype)
        or (target is aten.slice.Tensor and _cuts_nothing(*node.args[1:]))
    )
    return source if idle else None


def _cuts_nothing(
    dimension: Any = 0, start: Any = None, end: Any = None, step: Any = 1, *_: Any
) -> bool:
    return start in (None, 0) and (end is None or end == WHOLE) and step == 1


def takes_apart(node: fx.Node) -> bool:
    """Whether a call picks one member of a tuple."""
    return node.target is operator.getitem
