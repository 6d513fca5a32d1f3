"""Write an artifact as a checkpoint for others, under the published key names.

Its weights are dense, or packed integers of ``compressed-tensors`` (``packing``). Tensors are made
and written shard by shard, so that no more than one shard is in memory. The folder appears when it
is complete, and with ``verify`` only if its weights, and the logits of dense ones, are the
artifact's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdc.artifact.config import QUANTIZATION, plain_config
from qdc.artifact.partial import Partial, repair
from qdc.artifact.writer import CONFIG, EXPORT, ArtifactWriter, check_target
from qdc.errors import InvalidArtifact, OutputExists, QdcError
from qdc.exporting.gguf import export_gguf
from qdc.exporting.options import ExportOptions
from qdc.exporting.packing import Packing
from qdc.exporting.packing_proof import verify_packed
from qdc.exporting.published import published_tensors
from qdc.exporting.report import ExportReport, Verification
from qdc.exporting.serving import served_by
from qdc.exporting.verify import verify
from qdc.frontend.native import NativeModel
from qdc.ir.keys import layer_of
from qdc.ir.tensors import LONG, torch_dtype
from qdc.numerics.finite import is_finite
from qdc.pipeline.registry import Registry
from qdc.runtime.activations import NO_PLACE, RUN_IT, refuse_activations
from qdc.runtime.integrity import examine, refuse_damaged
from qdc.runtime.load import OpenedArtifact, open_artifact
from qdc.stopping import check
from qdc.units import StepProgress
from qdc.version import __version__

PACKED = "compressed-tensors"
SHARD = 1 << 30
"""Bytes of tensors that a file holds at most, unless one tensor alone has more."""


def export_artifact(
    options: ExportOptions,
    registry: Registry,
    progress: StepProgress | None = None,
    shard_bytes: int = SHARD,
) -> ExportReport:
    """Export; either the checkpoint is complete at the end, or nothing has changed at its place.

    Args:
        options: what is exported, where to, and how.
        registry: knows the codecs.
        progress: called with what is done, how much of it, and the total.
        shard_bytes: bytes of tensors in a file.

    Raises:
        InvalidArtifact: the artifact is damaged, or says what no ordinary checkpoint can say.
        QdcError: layers have no form that the format knows, or its package is not installed.
        OutputExists: something else is at ``out``.
        ExportDiffers: ``verify`` has found a difference.
    """
    _refuse_inside(options.artifact, options.out)
    if options.format == "gguf":
        return export_gguf(options, registry, progress)
    artifact, out = options.artifact, options.out
    notify = progress or (lambda what, done, total: None)
    repair(out)
    check_target(out, force=options.force)
    if options.verify:
        refuse_damaged(examine(artifact, registry, notify))
    opened = open_artifact(artifact, registry, verify=options.digests)
    opened.digests.check_companions()
    refuse_activations(opened.quantization.activations, NO_PLACE, RUN_IT, rotates=True)
    biases = opened.quantization.added_biases
    if biases:
        raise InvalidArtifact(
            "a pass has added biases, for which the model's own configuration has no place",
            where=biases,
            help="load it with qdc.load, or compile without the pass that adds them",
        )
    packing = Packing.of(opened, options.dtype) if options.format == PACKED else None
    dtype = packing.dtype if packing else options.decoded
    with Partial(out) as partial:
        writer = ArtifactWriter(out, force=options.force, folder=partial.artifact)
        with opened.verified():
            shards = _write_shards(opened, writer, torch_dtype(dtype), shard_bytes, notify, packing)
        writer.index()
        writer.json(CONFIG, _config(opened, dtype) | _packed_config(packing))
        for name, data in opened.source.tokenizer_bytes():
            writer.file(name, data)
        proof = None
        if options.verify and packing:
            proof = verify_packed(opened, partial.artifact, packing, notify)
        elif options.verify:
            proof = verify(opened, partial.artifact, registry, dtype, notify)
        report = _report(opened, writer, options, dtype, shards, proof)
        report = report.model_copy(update=_packed_report(opened, packing))
        writer.json(EXPORT, {k: v for k, v in report.as_data().items() if k != "out"})
        writer.commit()
    return report


def _write_shards(
    opened: OpenedArtifact,
    writer: ArtifactWriter,
    dtype: torch.dtype,
    limit: int,
    notify: StepProgress,
    packing: Packing | None = None,
) -> int:
    written = published_tensors(opened.module, opened.names)
    sizes = _sizes(opened, packing, dtype.itemsize)
    whole = {key: (sum(sizes[n] for n in each.names),) for key, each in written.items()}
    parts = plan_shards(whole, 1, limit)
    packed = packing.layers if packing else {}
    done, total = 0, sum(map(len, parts))
    for number, keys in enumerate(parts):
        tensors: dict[str, Tensor] = {}
        for key in keys:
            check()
            names = written[key].names
            if packing and layer_of(names[0]) in packed:
                tensors |= packing.tensors(opened.weights, layer_of(key), [*map(layer_of, names)])
            else:
                tensors[key] = written[key].join(
                    lambda name: _rounded(name, opened.tensor(name), dtype)
                )
            done += 1
            notify("decode and write", done, total)
        writer.shard(f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors", tensors)
    return len(parts)


def plan_shards(
    shapes: Mapping[str, tuple[int, ...]], itemsize: int, limit: int
) -> list[list[str]]:
    """Deal tensors to files in their order, so that what lies together stays together.

    Args:
        shapes: of every tensor, by name.
        itemsize: bytes of a number.
        limit: bytes of a file; one tensor may be larger.
    """
    parts: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        nbytes = itemsize * torch.Size(shape).numel()
        if not parts or nbytes > room:
            parts.append([])
            room = limit
        parts[-1].append(name)
        room -= nbytes
    return parts


def _sizes(opened: OpenedArtifact, packing: Packing | None, itemsize: int) -> dict[str, int]:
    """Bytes of what stands for every tensor of the model."""
    return {
        name: packing.nbytes(layer_of(name))
        if packing and layer_of(name) in packing.layers
        else itemsize * torch.Size(shape).numel()
        for name, shape in opened.names.items()
    }


def _packed_config(packing: Packing | None) -> dict[str, Any]:
    return {} if packing is None else {QUANTIZATION: packing.quantization_config()}


def _packed_report(opened: OpenedArtifact, packing: Packing | None) -> dict[str, Any]:
    """What the report says of packed layers, and of who can run them."""
    if packing is None:
        return {}
    return {
        "packed": len(packing.layers),
        "packed_as": str(packing),
        "effective_bits": packing.effective_bits,
        "decoded": len(packing.decoded),
        "served_by": served_by(plain_config(opened.source.config)),
    }


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = tensor.to(dtype)
    if not is_finite(rounded):
        raise InvalidArtifact(
            f"values of a tensor do not fit {dtype}".replace("torch.", ""),
            where=[name],
            help="export with --dtype bf16 or f32",
        )
    return rounded


def _config(opened: OpenedArtifact, dtype: str) -> dict[str, Any]:
    """The model's own configuration, with the dtype of its weights under both of its names."""
    config = plain_config(opened.source.config)
    if isinstance(opened.module, NativeModel):
        # Decoders of transformers look back only unless told; qdc compiled it looking both ways.
        built = opened.module.body.config
        if getattr(built, "is_causal", None) is False:
            config["is_causal"] = False
    return {**config, "dtype": LONG[dtype], "torch_dtype": LONG[dtype]}


def _report(
    opened: OpenedArtifact,
    writer: ArtifactWriter,
    options: ExportOptions,
    dtype: str,
    shards: int,
    proof: Verification | None,
) -> ExportReport:
    digest = opened.source.config[QUANTIZATION].get("checkpoint_sha256")
    return ExportReport(
        out=str(options.out),
        format=options.format,
        dtype=dtype,
        tensors=len(published_tensors(opened.module, opened.names)),
        nbytes=writer.tensor_bytes,
        shards=shards,
        unrotated=len(opened.weights.rotated),
        qdc_version=__version__,
        pipeline=opened.quantization.pipeline,
        checkpoint_sha256=digest if isinstance(digest, str) else "",
        verification=proof,
    )


def _refuse_inside(artifact: Path, out: Path) -> None:
    """The artifact is read while the export is written: neither may hold the other."""
    try:
        source, target = artifact.resolve(), out.resolve()
    except (OSError, RuntimeError) as error:
        raise QdcError(f"cannot follow {out}: {error}") from error
    if source == target or source in target.parents or target in source.parents:
        raise OutputExists(
            f"{out} and the artifact {artifact} lie in each other", help="choose another -o"
        )
