"""Make one call of several linears that read one value: q, k and v; gate and up.

Which linears do is read off the traced code of the module that holds them, never off the artifact
alone, whose ``stages`` only say where to look.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from qdc.frontend.tracer import LeafTracer
from qdc.models.places import Place, put

Joinable = Callable[[Sequence[str]], bool]
"""Whether one module can stand for the linears of these paths."""
Make = Callable[[Sequence[str]], nn.Module]
"""Builds it: ``[..., columns] -> [..., rows of all]``, in the order of the paths."""


@dataclass(frozen=True)
class Front:
    """What is computed in front of linears: once for all that read one value and want the same."""

    wanted: Callable[[str], Hashable]
    """Names what the linear of a path wants; None for nothing."""
    make: Make
    """Builds it for the linears of these paths: ``[..., columns] -> [..., columns]``."""


def join_stages(
    module: nn.Module,
    stages: Collection[Sequence[str]],
    layers: Collection[str],
    joinable: Joinable,
    make: Make,
    front: Front | None = None,
) -> frozenset[str]:
    """Replace linears by one call and a split, wherever the code shows that they read one value.

    The module that holds such linears becomes a ``GraphModule`` of its own code, with the same
    modules inside but for the joined ones; everything around it stays as it is.

    Args:
        module: one of qdc's own models, on the meta device.
        stages: paths that may read one value; unknown ones do no harm.
        layers: the paths that may be joined at all.
        joinable: what the backend can compute at once.
        make: called once for every group, when it is certain.
        front: what is computed in front of linears, whether they are joined or not.

    Returns:
        The paths that are gone.
    """
    gone: set[str] = set()
    holders = _by_holder(stages, layers)
    for holder in sorted(holders, key=lambda path: -path.count(".")):
        part = module.get_submodule(holder)
        if isinstance(part, Place):  # what computes with these linears stands around it
            continue
        graph = _Tracer().trace(part)
        groups: list[list[str]] = []
        shared = 0
        for names in holders[holder]:
            free = [name for name in names if f"{holder}.{name}" not in gone]
            if front is not None:
                shared += _share(graph, part, holder, free, front)
            for group in _groups(graph, holder, free, joinable):
                groups.append(group)
                gone.update(_under(holder, group))
        for group in groups:
            joined = _free_name(part, "_".join(group))
            sizes = [_linear(part, name).out_features for name in group]
            part.add_module(joined, make(_under(holder, group)))
            _rewrite(graph, group, joined, sizes)
        if groups or shared:
            above, _, name = holder.rpartition(".")
            whole = fx.GraphModule(part, graph, class_name=type(part).__name__)
            _keep_others(whole, part, [name for group in groups for name in group])
            module.get_submodule(above).add_module(name, whole)
    return frozenset(gone)


class _Tracer(LeafTracer):
    """Stops at every module without children: the leaves, and what was put in their place."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(m.children())


def _by_holder(
    stages: Collection[Sequence[str]], layers: Collection[str]
) -> dict[str, list[list[str]]]:
    """For each module that holds several layers of a stage, their names in it, stage by stage."""
    found: dict[str, list[list[str]]] = defaultdict(list)
    for stage in stages:
        inside: dict[str, list[str]] = defaultdict(list)
        for path in dict.fromkeys(stage):
            holder, _, name = path.rpartition(".")
            if holder and path in layers:
                inside[holder].append(name)
        for holder, names in inside.items():
            if len(names) > 1:
                found[holder].append(names)
    return found


def _groups(
    graph: fx.Graph, holder: str, names: Sequence[str], joinable: Joinable
) -> Iterator[list[str]]:
    """Those that are called once, on one value, as far as the backend can join them."""
    readers: dict[fx.Node, list[list[str]]] = defaultdict(list)
    for name, call in _calls(graph, names):
        groups = readers[_read(call)]
        for group in groups:
            if joinable(_under(holder, [*group, name])):
                group.append(name)
                break
        else:
            groups.append([name])
    for groups in readers.values():
        yield from (group for group in groups if len(group) > 1)


def _calls(graph: fx.Graph, names: Sequence[str]) -> Iterator[tuple[str, fx.Node]]:
    """The calls of those that are called once, with one value."""
    for name in names:
        calls = graph.find_nodes(op="call_module", target=name)
        if len(calls) == 1 and len(calls[0].args) == 1:
            yield name, calls[0]


def _read(call: fx.Node) -> fx.Node:
    value = call.args[0]
    assert isinstance(value, fx.Node)
    return value


def _share(
    graph: fx.Graph, part: nn.Module, holder: str, names: Sequence[str], front: Front
) -> int:
    """Compute once what several linears want in front of them; returns how often that was."""
    alike: dict[tuple[fx.Node, Hashable], list[tuple[str, fx.Node]]] = defaultdict(list)
    for name, call in _calls(graph, names):
        alike[_read(call), front.wanted(f"{holder}.{name}")].append((name, call))
    found = [(*key, own) for key, own in alike.items() if key[1] is not None and len(own) > 1]
    for value, _, own in found:
        readers = [name for name, _ in own]
        before = _free_name(part, "before_" + "_".join(readers))
        part.add_module(before, front.make(_under(holder, readers)))
        with graph.inserting_after(value):
            computed = graph.call_module(before, (value,))
        for _, call in own:
            call.args = (computed,)
    return len(found)


def _free_name(part: nn.Module, name: str) -> str:
    while hasattr(part, name):
        name += "_"
    return name


def _rewrite(graph: fx.Graph, names: Sequence[str], joined: str, sizes: list[int]) -> None:
    """Call the joined module where the first of them was called, and cut its result."""
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target in names]
    by_name = {str(node.target): node for node in calls}
    with graph.inserting_before(calls[0]):
        whole = graph.call_module(joined, (calls[0].args[0],))
        parts = graph.call_function(torch.split, (whole, sizes), {"dim": -1})
        cut = [graph.call_function(operator.getitem, (parts, i)) for i in range(len(names))]
    for name, part in zip(names, cut, strict=True):
        by_name[name].replace_all_uses_with(part)
        graph.erase_node(by_name[name])


def _keep_others(whole: nn.Module, part: nn.Module, gone: Collection[str]) -> None:
    """Put what stands in a part and computes elsewhere, as a norm in front of it, in its copy."""
    for path, child in part.named_modules():
        there = dict(whole.named_modules())
        if path not in there and path not in gone:
            put(whole, path, child)


def _under(holder: str, names: Sequence[str]) -> list[str]:
    return [f"{holder}.{name}" for name in names]


def _linear(part: nn.Module, name: str) -> nn.Linear:
    found = part.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found
