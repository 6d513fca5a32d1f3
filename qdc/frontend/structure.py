"""Regions and stages, read from the module tree and the traced graph, never from layer names.

A region is one member of a module list whose members are alike, hold linears, and hand one value
from each to the next: the residual stream. A stage is the set of linears that read one value.
"""

from collections.abc import Mapping

from torch import nn

from qdc.errors import UnsupportedModel
from qdc.ir.graph import LINEAR, Node, Region, Stage


def find_regions(
    module: nn.Module, nodes: tuple[Node, ...], stacks: Mapping[str, tuple[str, ...]], prefix: str
) -> tuple[Region, ...]:
    """Return the regions of a traced model in execution order, each with its stages.

    Args:
        module: the model; its outermost module lists with linears give the regions.
        nodes: traced nodes in execution order.
        stacks: for each node the paths of the modules that it was traced in, outermost first.
        prefix: start of the module paths that the region names leave out.

    Raises:
        UnsupportedModel: no module list repeats a block, a list mixes classes, a block does not
            hand one value to the next, or two linears have one weight.
    """
    within: dict[str, list[Node]] = {}
    for node in nodes:
        for member in stacks[node.name]:
            within.setdefault(member, []).append(node)
    regions = []
    for path, modules in _outermost_lists(module):
        classes = {type(member) for member in modules}
        if len(classes) > 1:
            raise UnsupportedModel(
                "the members of a module list are not alike: "
                + ", ".join(sorted(kind.__name__ for kind in classes)),
                where=[path],
                help="qdc streams a model by its repeated blocks",
            )
        for index in range(len(modules)):
            member = f"{path}.{index}"
            inside = tuple(within.get(member, ()))
            if inside:
                name = member.removeprefix(prefix)
                regions.append(
                    Region(
                        name=name,
                        nodes=tuple(n.name for n in inside),
                        stages=find_stages(inside),
                    )
                )
    if not regions:
        raise UnsupportedModel(
            "the model has no module list of repeated blocks with linears",
            help="qdc streams a model by its repeated blocks and supports none without them",
        )
    place = {node.name: index for index, node in enumerate(nodes)}
    regions.sort(key=lambda region: place[region.nodes[0]])
    _check_stream(regions, nodes)
    _check_weights(nodes)
    return tuple(regions)


def find_stages(nodes: tuple[Node, ...]) -> tuple[Stage, ...]:
    """Group the linears among ``nodes`` by the value that they read, in execution order."""
    readers: dict[str, list[str]] = {}
    for node in nodes:
        if node.op == LINEAR:
            readers.setdefault(node.inputs[0], []).append(node.name)
    return tuple(Stage(value=value, layers=tuple(layers)) for value, layers in readers.items())


def _outermost_lists(module: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    found: list[tuple[str, nn.ModuleList]] = []
    for path, child in module.named_modules():
        nested = any(path.startswith(f"{outer}.") for outer, _ in found)
        if not nested and isinstance(child, nn.ModuleList) and _holds_linears(child):
            found.append((path, child))
    return found


def _holds_linears(module: nn.Module) -> bool:
    return any(isinstance(child, nn.Linear) for child in module.modules())


def _check_stream(regions: list[Region], nodes: tuple[Node, ...]) -> None:
    """Each region is contiguous and gives the rest of the model exactly one value."""
    place = {node.name: index for index, node in enumerate(nodes)}
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node.name)
    for region in regions:
        inside = set(region.nodes)
        places = sorted(place[name] for name in region.nodes)
        given = [n for n in region.nodes if any(r not in inside for r in readers.get(n, ()))]
        if places != list(range(places[0], places[-1] + 1)):
            raise UnsupportedModel(
                "a block is not executed in one piece", where=[f"%{region.name}"]
            )
        if len(given) > 1:
            raise UnsupportedModel(
                f"a block hands {len(given)} values on, not one residual stream",
                where=[f"%{name}" for name in given],
            )


def _check_weights(nodes: tuple[Node, ...]) -> None:
    """Each linear has a weight of its own: two statistics cannot decide one quantization."""
    owners: dict[str, list[str]] = {}
    for node in nodes:
        if node.op == LINEAR:
            owners.setdefault(node.weight.name, []).append(node.name)
    shared = [f"%{name}" for names in owners.values() if len(names) > 1 for name in names]
    if shared:
        raise UnsupportedModel("one weight is used by more than one linear", where=shared)
