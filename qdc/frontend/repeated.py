"""One expert of each block is exported; all others are written from it.

The experts of a block compute the same on weights and tokens of their own. ``torch.export`` takes a
quarter of a second for each, whatever its size: half an hour for some thousands. Instead a copy of
the model is exported in which every ``UnrolledExperts`` runs its first expert alone, and the calls
of that one are repeated in the exported graph, once for each expert: with the expert's own
parameters, its own number where its tokens are picked, and the sum of the experts before it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx, nn

from qdc.errors import UnsupportedModel
from qdc.frontend.body import PREFIX
from qdc.frontend.grouping import aten, gives_tensor
from qdc.frontend.unrolled import UnrolledExperts

PICK = aten.select.int
NUMBER = 2
"""Place of the expert's number among the arguments of the call that picks its weights."""


def shortened(model: nn.Module) -> dict[str, int]:
    """Leave the first expert of each block, in place.

    Returns:
        By the path of each block's experts how many there were.
    """
    found: dict[str, int] = {}
    for path, module in list(model.named_modules()):
        if isinstance(module, UnrolledExperts):
            found[path] = module.shorten()
    return found


def repeat_experts(
    graph: fx.Graph, counts: Mapping[str, int], parameters: Mapping[fx.Node, str]
) -> dict[fx.Node, str]:
    """Write all experts of an exported graph, in place.

    Args:
        graph: of a shortened model.
        counts: what ``shortened`` gave.
        parameters: placeholders of the export, and the names of what they stand for.

    Returns:
        The placeholders that were added, with their names.

    Raises:
        UnsupportedModel: something besides the sum reads what is inside of an expert.
    """
    members: dict[str, list[fx.Node]] = {path: [] for path in counts}
    for node in graph.nodes:
        owner = _owner(node, counts)
        if owner is not None:
            members[owner].append(node)
    added: dict[fx.Node, str] = {}
    for path, calls in members.items():
        added |= _repeat(graph, f"{path}.", counts[path], calls, parameters)
    return added


def _owner(node: fx.Node, counts: Mapping[str, int]) -> str | None:
    """Path of the experts of which a call belongs to the first."""
    paths = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    for path in paths:
        owner, _, leaf = path.rpartition(".")
        if leaf == "0" and owner in counts:
            return owner
    return None


def _repeat(
    graph: fx.Graph,
    path: str,
    count: int,
    calls: list[fx.Node],
    parameters: Mapping[fx.Node, str],
) -> dict[fx.Node, str]:
    inside = set(calls)
    (*_, last) = calls
    own_path = path.removeprefix(PREFIX)
    before = _sum_before(calls)
    tensors = [call for call in calls if gives_tensor(call) and call is not last]
    leaks = [call.name for call in tensors if any(user not in inside for user in call.users)]
    if leaks:
        raise UnsupportedModel("a value inside an expert is read outside of it", where=leaks)
    readers = list(last.users)
    added: dict[fx.Node, str] = {}
    end = last
    total = last
    for number in range(1, count):
        same: dict[fx.Node, fx.Node] = {before: total}
        for read in _read(calls, parameters):
            name = f"{own_path}{number}." + parameters[read].removeprefix(f"{own_path}0.")
            with graph.inserting_before(read):
                own = graph.placeholder(name.replace(".", "_"))
            own.meta = dict(read.meta)
            same[read], added[own] = own, name
        for call in calls:
            with graph.inserting_after(end):
                end = graph.node_copy(call, lambda node: same.get(node, node))  # noqa: B023
            end.meta = {**call.meta, "nn_module_stack": _moved(call, path, number)}
            if call.target is PICK and call.args[0] not in inside:  # the weights of all experts
                end.args = (*end.args[:NUMBER], number, *end.args[NUMBER + 1 :])
            same[call] = end
        total = same[last]
    for reader in readers:
        reader.replace_input_with(last, total)
    return added


def _sum_before(calls: list[fx.Node]) -> fx.Node:
    """What the first expert adds to: zeros. Raises ``UnsupportedModel`` if that is not seen."""
    inside = set(calls)
    read = dict.fromkeys(r for call in calls for r in call.all_input_nodes if r not in inside)
    found = [node for node in read if node.target is aten.zeros_like.default]
    if len(found) != 1:
        raise UnsupportedModel("the sum of the experts is not found", where=[calls[-1].name])
    return found[0]


def _read(calls: list[fx.Node], parameters: Mapping[fx.Node, str]) -> Iterator[fx.Node]:
    """Placeholders of the parameters that the calls read."""
    reads = dict.fromkeys(read for call in calls for read in call.all_input_nodes)
    return (read for read in reads if read in parameters)


def _moved(call: fx.Node, path: str, number: int) -> dict[str, Any]:
    """The module stack of a call, as of another expert."""
    return {
        key: (_numbered(str(place), path, number), kind)
        for key, (place, kind) in call.meta["nn_module_stack"].items()
    }


def _numbered(place: str, path: str, number: int) -> str:
    """The path of a module inside the first expert, as of another one."""
    first, _, rest = place.removeprefix(path).partition(".")
    if not place.startswith(path) or first != "0":
        return place
    return f"{path}{number}" + (f".{rest}" if rest else "")
