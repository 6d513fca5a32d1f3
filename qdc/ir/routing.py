"""Values that have rows for some tokens only: those that a router sends to one expert."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qdc.ir.graph import LayerGraph

ROUTED = "N"
"""The dimension of tokens that are routed to one expert; its size is known only at run time."""
ROUTER, ROWS, GIVE = "router", "rows", "give"
"""Operations: the scores of the experts, the tokens of one of them, and the sum that it adds to."""


def rows_of(graph: "LayerGraph", value: str) -> str | None:
    """Return the node that says which tokens a value has rows for; None if it has all."""
    pending = [value]
    while pending:
        node = graph[pending.pop()]
        if node.type.shape[:1] == (ROUTED,):
            if node.op == ROWS:
                return node.name
            pending.extend(node.inputs)
    return None
