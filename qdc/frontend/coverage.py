"""What happens to every tensor of a checkpoint; nothing is left out in silence."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from torch import nn

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCheckpoint
from qdc.format.codec import Lowered
from qdc.ir.annotations import OUTSIDE, TIED, Kept
from qdc.ir.graph import LINEAR, LayerGraph
from qdc.ir.parts import Part
from qdc.ir.tuned import Tuned
from qdc.ir.types import Frozen, Parameter
from qdc.models.network import fused_of

MOST_REASONS = 3
"""More reasons than these are told in the report alone."""
FLOATING = ("f64", "f32", "f16", "bf16")


class Covered(Frozen):
    """The fate of one tensor."""

    tensor: str
    status: Literal["quantized", "kept", "left out"]
    reason: str
    weights: int


def spare_tensors(rows: Iterable[Covered]) -> str:
    """Say how many tensors of a checkpoint nothing reads, and why; empty if all are read."""
    reasons = Counter(row.reason for row in rows if row.status == "left out")
    if not reasons:
        return ""
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{reasons.total()} left out" + (f" ({told})" if len(reasons) <= MOST_REASONS else "")


def mark_kept(graph: LayerGraph) -> None:
    """Annotate the linears that lie outside the regions: they stay as they are."""
    inside = {layer for region in graph.regions for s in region.stages for layer in s.layers}
    for node in graph.linears():
        if node.name not in inside:
            own = graph.owner(node.name) == node.name
            graph.annotate(node.name, Kept(reason=OUTSIDE if own else TIED))


def check_tensors(
    graph: LayerGraph, checkpoint: Checkpoint, module: nn.Module | None = None
) -> None:
    """Compare the checkpoint with the traced model, both ways.

    Args:
        graph: of the model.
        checkpoint: headers under the model's own names.
        module: what was traced; says which tensors may be held as rows of another one.

    Raises:
        InvalidCheckpoint: a tensor is missing, has another shape, or maps to nothing in the model.
    """
    wanted = {p.name: p for node in graph for p in node.parameters}
    missing = sorted(set(wanted) - set(checkpoint.headers))
    if missing:
        raise InvalidCheckpoint(
            f"the checkpoint lacks {len(missing)} tensor{'s' * (len(missing) > 1)} of the model",
            where=_in_rows(missing, {} if module is None else fused_of(module)),
            help="fetch the shards again, and see that config.json belongs to them",
        )
    wrong = [
        f"{name}: {checkpoint.headers[name]} instead of {tuple(parameter.shape)}"
        for name, parameter in wanted.items()
        if checkpoint.headers[name].shape != parameter.shape
    ]
    if wrong:
        raise InvalidCheckpoint(
            "tensors do not have the shape that config.json gives",
            where=wrong,
            help="fetch the shards again, and see that config.json belongs to them",
        )
    unmapped = sorted(set(checkpoint.headers) - set(wanted))
    if unmapped:
        some, them = ("tensors are", "them") if len(unmapped) > 1 else ("tensor is", "it")
        raise InvalidCheckpoint(
            f"{len(unmapped)} {some} unmapped: the model has no place for {them}",
            where=unmapped,
            help="the checkpoint may be of another variant of the family; compare config.json",
        )
    odd = [f"{n}: {p.dtype}" for n, p in checkpoint.headers.items() if p.dtype not in FLOATING]
    if odd:
        raise InvalidCheckpoint(
            "weights are not floating point",
            where=odd,
            help="give the bf16, f16 or f32 checkpoint that it was made from, or decode it to one",
        )


def _in_rows(names: Sequence[str], fused: Mapping[str, Part]) -> list[str]:
    """Names of tensors, with the one that checkpoints usually hold them in, where there is one."""
    told = []
    for name in names:
        part = fused.get(name)
        rows = part.rows if part is not None else None
        other = f", or rows {rows[0]} to {rows[1]} of {part.key}" if part and rows else ""
        told.append(f"{name}{other}")
    return told


def coverage(graph: LayerGraph, checkpoint: Checkpoint | None = None) -> tuple[Covered, ...]:
    """List every tensor of the model with its fate and the reason, in execution order.

    Those of the checkpoint that the model has no use for come last.
    """
    quantized = {node.name: "a linear of a repeated block" for node in graph.layers()}
    for node in graph.vocabulary():
        if graph.get(node.name, Lowered) is not None:
            quantized[node.name] = "the output head" if node.op == LINEAR else "the embedding"
    rows: dict[str, Covered] = {}
    for node in graph:
        for parameter in node.parameters:
            lowered = node.name in quantized and parameter.role == "weight"
            if parameter.name in rows:  # tied: the first reader owns it
                continue
            rows[parameter.name] = Covered(
                tensor=parameter.name,
                status="quantized" if lowered else "kept",
                reason=quantized[node.name] if lowered else _reason(graph, node.name, parameter),
                weights=parameter.elements({}),
            )
    spare = {} if checkpoint is None else checkpoint.left_out
    left_out = (
        Covered(tensor=key, status="left out", reason=reason, weights=header.elements({}))
        for key, (header, reason) in spare.items()
    )
    return (*rows.values(), *left_out)


def _reason(graph: LayerGraph, name: str, parameter: Parameter) -> str:
    node = graph[name]
    kept = graph.get(name, Kept)
    if kept is not None and (kept.reason != TIED or parameter.role == "weight"):
        return kept.reason
    plain = "bias" if node.op == LINEAR else node.op
    return plain if graph.get(name, Tuned) is None else f"{plain}, tuned"
