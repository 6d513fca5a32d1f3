"""What nodes compute with: made ready all at once, or one by one where memory is short."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from qdc.ir.graph import LayerGraph
from qdc.streaming.work import FP32

NodeWeights = Callable[[str], Mapping[str, Tensor]]
"""``node name -> tensors by role``, in the compute dtype, as they stand now."""
Parameters = Mapping[str, Mapping[str, Tensor]]
"""By node and role: what every executed node computes with."""


def parameters_of(
    graph: LayerGraph, weights: NodeWeights, steps: Sequence[str], limit: int | None
) -> Parameters:
    """What the steps compute with, as it stands now.

    Args:
        graph: says how large they are.
        weights: makes those of a node ready: it decodes what is packed.
        steps: names of the nodes.
        limit: bytes in fp32 up to which all are made ready at once, for all batches; beyond it each
            is when it is asked for, and not kept. None is no limit.
    """
    needed = sum(FP32 * p.elements({}) for name in steps for p in graph[name].parameters)
    if limit is not None and needed > limit:
        return _OneByOne(weights, steps)
    return {name: weights(name) for name in steps}


class _OneByOne(Mapping[str, Mapping[str, Tensor]]):
    """Parameters by node that are made ready when they are asked for, and not kept."""

    def __init__(self, weights: NodeWeights, names: Sequence[str]) -> None:
        self._weights, self._names = weights, names

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        return self._weights(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
