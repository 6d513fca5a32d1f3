"""What lies between the embedding and the first region, taken backwards.

Most models hand the embedding's rows to the first block as they are. Some scale or normalize them,
or add positions, before it or beside it; that is computed once more, with gradients.
"""

from collections.abc import Iterator, Sequence

import torch

from qdc.passkit.course import Batch, Course, Gradients, Piece
from qdc.streaming.parameters import NodeWeights
from qdc.streaming.states import Held
from qdc.streaming.stream import Stream


def embedding_slopes(
    name: str,
    stream: Stream,
    course: Course,
    first: Sequence[Held],
    behind: Sequence[Gradients],
    read: NodeWeights,
) -> Iterator[Gradients]:
    """Derivatives of the loss by what the embedding gives, batch by batch.

    Args:
        name: its node.
        stream: of the model.
        course: from the first region on.
        first: each batch where the model begins.
        behind: for each batch, derivatives by the values that are held before the first region.
        read: parameters of a node.

    Yields:
        ``f32[b, length, columns]`` under the node's name; nothing if no prediction hangs on it.
    """
    if all(set(slopes) <= {name} for slopes in behind):
        yield from behind
        return
    held = {value for slopes in behind for value in slopes}
    piece, begin = _piece(name, stream, course, sorted(held))
    weights = {step: read(step) for step in begin}
    parameters = {step: read(step) for step in piece.steps}
    for index, batch in enumerate(first):
        segments, masked = stream.segments_of(index), stream.masked_of(index)
        with torch.no_grad():
            rows = course.executor.run(batch, begin, weights, (name,), segments, masked)
        there = course.states.hold({**batch, **rows})
        before, _ = course.backward(
            Batch(there, segments, masked), piece, parameters, behind[index]
        )
        yield {name: before[name]} if name in before else {}


def _piece(
    name: str, stream: Stream, course: Course, held: Sequence[str]
) -> tuple[Piece, list[str]]:
    """From the embedding's rows to the values that are held, and what is computed before that."""
    tokens, order = stream.order.tokens, stream.order
    given = tuple(value for value in held if value != name)
    staying = tuple(value for value in held if value == name)
    steps = order.steps(given, (tokens, name))
    return Piece(stream.graph.regions[0], steps, given, staying), order.steps((name,), (tokens,))
