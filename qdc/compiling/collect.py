"""Read the figures of a report off the graph, the plan, the artifact and the machine."""

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from qdc.compiling.instruments import Measured
from qdc.format.codec import Lowered
from qdc.ir.activations import InputCodes, Rotation
from qdc.ir.annotations import Moment, Orders, Packed
from qdc.ir.distilled import Distilled
from qdc.ir.graph import LINEAR, LayerGraph, Node
from qdc.ir.keys import file_key
from qdc.ir.tuned import Tuned
from qdc.ir.types import BYTES
from qdc.pipeline.passbase import Configured, option_text
from qdc.pipeline.plan import Group, Plan
from qdc.report.model import FileReport, LayerReport, PassReport, SizePart
from qdc.version import __version__


def layer_reports(graph: LayerGraph) -> Iterable[LayerReport]:
    """Read the figures of every packed layer of the repeated blocks off the graph."""
    return (row for node, row in _packed(graph) if node.name in graph.inside)


def outside_reports(graph: LayerGraph) -> Iterable[LayerReport]:
    """The same for what is packed outside of them: embedding and output head."""
    return (row for node, row in _packed(graph) if node.name not in graph.inside)


def distilled(graph: LayerGraph) -> Distilled | None:
    """What the predictions have gained, from the head; None where nothing was tuned for them."""
    return next(filter(None, (graph.get(node.name, Distilled) for node in graph.outside())), None)


def _packed(graph: LayerGraph) -> Iterator[tuple[Node, LayerReport]]:
    for node in graph:
        lowered, packed = graph.get(node.name, Lowered), graph.get(node.name, Packed)
        if lowered is None or packed is None:
            continue
        orders, tuned = graph.get(node.name, Orders), graph.get(node.name, Tuned)
        moment, codes = graph.get(node.name, Moment), graph.get(node.name, InputCodes)
        static = {} if codes is None else dict(zip(codes.suffixes, codes.tensors, strict=True))
        refs = {**dict(zip(packed.suffixes, packed.tensors, strict=True)), **static}
        added = 0 if tuned is None else tuned.added_bytes(node)
        yield (
            node,
            LayerReport(
                name=node.name,
                kind=node.kind,
                rows=node.rows,
                columns=node.columns,
                codec=lowered.codec.name,
                rotated=graph.get(node.name, Rotation) is not None,
                orders=orders.blocks if orders is not None else (),
                bits_word=lowered.codec.bits_word,
                payload_bits=packed.payload_bits,
                nbytes=packed.nbytes + added + sum(ref.nbytes for ref in static.values()),
                error=lowered.error,
                block_errors=lowered.block_errors,
                stored={suffix: ref.nbytes for suffix, ref in refs.items()},
                routed=None if moment is None else moment.routed,
            ),
        )


def size_parts(graph: LayerGraph, extra: Mapping[str, Tensor]) -> tuple[SizePart, ...]:
    """What the artifact's tensor bytes are, computed from shapes and dtypes alone."""
    found: dict[str, int] = {}
    for rows, prefix in ((layer_reports(graph), "linears"), (outside_reports(graph), "vocabulary")):
        for row in rows:
            payload = row.payload_bits // 8
            scales = sum(size for suffix, size in row.stored.items() if "scale" in suffix)
            scales += row.stored.get("minimum", 0)
            for name, size in (
                ("signs and codes", payload),
                ("scales", scales),
                ("tags and padding", sum(row.stored.values()) - payload - scales),
            ):
                key = f"{prefix}: {name}"
                found[key] = found.get(key, 0) + size
    seen: set[str] = set()
    for name, key, size in _plain(graph):
        if name not in seen:
            found[key] = found.get(key, 0) + size
        seen.add(name)
    if extra:
        found["buffers, kept"] = sum(tensor.nbytes for tensor in extra.values())
    return tuple(SizePart(name=name, nbytes=size) for name, size in found.items() if size)


def _plain(graph: LayerGraph) -> Iterator[tuple[str, str, int]]:
    """Name, use and bytes of every tensor that is stored plainly: kept or tuned."""
    for node in graph:
        tuned = graph.get(node.name, Tuned)
        owner = graph.owner(node.name)
        replaced = {"weight"} if graph.get(owner, Packed) is not None else set()
        if tuned is not None:
            for role, ref in zip(tuned.roles, tuned.tensors, strict=True):
                use = _part(node, role, node.name in graph.inside)
                yield file_key(node.path, role), f"{use}, tuned", ref.nbytes
            replaced.update(tuned.roles)
        for parameter in node.parameters:
            if parameter.role not in replaced:
                use = _part(node, parameter.role, node.name in graph.inside)
                size = parameter.elements({}) * BYTES[parameter.dtype]
                yield parameter.name, f"{use}, kept", size


def _part(node: Node, role: str, inside: bool) -> str:
    if role == "bias":
        return "biases"
    if node.op == LINEAR:
        return "linears" if inside else "output head"
    return node.op


def pass_reports(plan: Plan, measured: Iterable[Measured]) -> tuple[PassReport, ...]:
    """Options and cost of every pass of the plan."""
    return tuple(
        PassReport(
            name=row.name,
            seconds=row.seconds,
            peak_bytes=row.peak_bytes,
            units=row.units,
            options=_options(step),
            changed=tuple(step.options()),
        )
        for step, row in zip(plan.passes(), measured, strict=True)
    )


def full_text(plan: Plan) -> str:
    """The pipeline with every option of its passes written out."""
    return ",".join(
        f"{item.order}({','.join(map(_full, item.passes))})"
        if isinstance(item, Group)
        else _full(item)
        for item in plan.items
    )


def _full(step: Configured) -> str:
    given = " ".join(f"{key}={value}" for key, value in _options(step).items())
    return f"{step.name}{{{given}}}" if given else step.name


def _options(step: Configured) -> dict[str, str]:
    return {
        field.replace("_", "-"): option_text(getattr(step, field))
        for field in type(step).model_fields
    }


def file_reports(paths: Iterable[Path]) -> tuple[FileReport, ...]:
    """Name and size of each file."""
    return tuple(FileReport(name=path.name, nbytes=path.stat().st_size) for path in paths)


def environment(device: str) -> dict[str, str]:
    """Versions, threads and machine."""
    found = {"qdc": __version__, "python": platform.python_version()}
    found |= {name: version(name) for name in ("torch", "safetensors", "tokenizers")}
    found["threads"] = str(torch.get_num_threads())
    found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if device.startswith("cuda"):
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found
