"""Write calls that change a tensor in place as calls that give a new one.

The nodes of a layer graph are run apart from each other, from values that may have been kept for
later: none may change what another one reads.
"""

import operator

import torch
from torch import fx
from torch._ops import OpOverload

from qdc.errors import UnsupportedModel


def without_mutation(graph: fx.Graph) -> None:
    """Rewrite the graph where it stands.

    Raises:
        UnsupportedModel: what is changed is a view of another tensor or has views, or there is no
            call that gives a new one.
    """
    place = {node: index for index, node in enumerate(graph.nodes)}
    refused = []
    for node in graph.nodes:
        target = node.target
        if not isinstance(target, OpOverload) or not target._schema.is_mutable:
            continue
        changed, twin = node.args[0], _twin(target)
        earlier = [user for user in changed.users if place[user] < place[node]]
        if twin is None or changed.op == "placeholder" or any(map(_is_view, [changed, *earlier])):
            refused.append(f"{node.name} = {target}")
            continue
        node.target = twin
        changed.replace_all_uses_with(
            node, delete_user_cb=lambda user, after=place[node]: place[user] > after
        )
    if refused:
        raise UnsupportedModel("the model changes views of tensors in place", where=refused)


def _twin(target: OpOverload) -> OpOverload | None:
    """The overload that gives a new tensor: ``div.Tensor`` for ``div_.Tensor``."""
    namespace, _, name = target._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    found = getattr(packet, target._overloadname, None) if name.endswith("_") else None
    return found if isinstance(found, OpOverload) else None


def _is_view(node: fx.Node) -> bool:
    """Whether a value shares its memory with what it was made from."""
    if node.target is operator.getitem:
        return _is_view(node.all_input_nodes[0])
    if not isinstance(node.target, OpOverload):
        return False
    return any(result.alias_info is not None for result in node.target._schema.returns)
