"""Write an artifact as one GGUF file: blocks of ggml as they are, all else decoded.

With ``verify`` the file is read again by the package ``gguf`` before it appears: blocks must be
those of the artifact byte for byte, and every other tensor what it decodes to, rounded.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qdc.artifact.commit import SingleFile
from qdc.artifact.config import QUANTIZATION, plain_config
from qdc.artifact.partial import Partial, repair
from qdc.artifact.writer import ArtifactWriter, check_target
from qdc.errors import ExportDiffers
from qdc.exporting.options import ExportOptions
from qdc.exporting.report import ExportReport, Verification
from qdc.format.ggml import Ggml
from qdc.format.weights import Weights
from qdc.gguf.names import Naming, naming
from qdc.gguf.package import gguf_package
from qdc.gguf.vocabulary import read_vocabulary
from qdc.gguf.writing import Decoded, write_gguf
from qdc.ir.keys import file_key
from qdc.pipeline.registry import Registry
from qdc.runtime.activations import NO_PLACE, RUN_IT, refuse_activations
from qdc.runtime.integrity import examine, refuse_damaged
from qdc.runtime.load import open_artifact
from qdc.units import StepProgress
from qdc.version import __version__

FILE = SingleFile("model.gguf", b"GGUF")
DECODED: dict[str, Decoded] = {"f16": "F16", "q8_0": "Q8_0"}


def export_gguf(
    options: ExportOptions, registry: Registry, progress: StepProgress | None = None
) -> ExportReport:
    """Export; either the file is complete at the end, or nothing has changed at its place.

    Raises:
        UnsupportedModel: llama.cpp has no graph or no tokenizer for the model.
        InvalidArtifact: the artifact is damaged, or values do not fit fp16.
        OutputExists: something else is at ``out``.
        ExportDiffers: ``verify`` has found a difference.
    """
    out, notify = options.out, progress or (lambda what, done, total: None)
    repair(out)
    check_target(out, force=options.force, single=FILE)
    if options.verify:
        refuse_damaged(examine(options.artifact, registry, notify))
    opened = open_artifact(options.artifact, registry, verify=options.digests)
    opened.digests.check_companions()
    refuse_activations(opened.quantization.activations, NO_PLACE, RUN_IT, rotates=True)
    model = naming(plain_config(opened.source.config), registry.families)
    vocabulary = read_vocabulary(opened.source.folder, model, options.pre_tokenizer)
    proof = None
    with Partial(out) as partial:
        writer = ArtifactWriter(out, force=options.force, folder=partial.artifact, single=FILE)
        path = partial.artifact / FILE.name
        with opened.verified():
            written = write_gguf(
                path,
                model,
                opened.source,
                opened.weights,
                vocabulary,
                name=out.stem,
                dense=DECODED[options.decoded],
            )
        if options.verify:
            proof = _verify(path, model, opened.weights, notify)
        writer.commit()
    digest = opened.source.config[QUANTIZATION].get("checkpoint_sha256")
    return ExportReport(
        out=str(out),
        format=options.format,
        dtype=options.decoded,
        tensors=written.tensors,
        nbytes=written.nbytes,
        shards=1,
        types=written.types,
        decoded=len(written.decoded),
        unrotated=len(opened.weights.rotated),
        qdc_version=__version__,
        pipeline=opened.quantization.pipeline,
        checkpoint_sha256=digest if isinstance(digest, str) else "",
        verification=proof,
    )


def _verify(path: Path, model: Naming, weights: Weights, notify: StepProgress) -> Verification:
    """Compare the file with the artifact. Raises ``ExportDiffers``, naming the tensors."""
    package, differing = gguf_package(), []
    read = {tensor.name: tensor for tensor in package.GGUFReader(str(path)).tensors}
    places = list(model.places.items())
    for done, (layer, place) in enumerate(places):
        data = read[f"{place.name}.weight"].data
        part = torch.from_numpy(np.array(data if place.expert is None else data[place.expert]))
        if not torch.equal(part, _expected(package, layer, part, weights, place.reordered)):
            differing.append(layer)
        notify("compare tensors", done + 1, len(places))
    if differing:
        raise ExportDiffers(
            f"the file is not the artifact: {len(differing)} of {len(places)} tensors differ",
            where=differing,
            help="the disk or the memory has changed what was written, or this is a bug of qdc",
        )
    return Verification(tensors=len(places))


def _expected(package: Any, layer: str, part: Tensor, weights: Weights, reordered: Any) -> Tensor:
    if isinstance(weights.codecs.get(layer), Ggml):
        found: Tensor = reordered(weights.stored(layer)["blocks"])
        return found
    dense: Tensor = reordered(weights.unrotated(file_key(layer)).float())
    if part.dtype != torch.uint8:
        return dense.to(part.dtype)
    kind = package.GGMLQuantizationType.Q8_0
    return torch.from_numpy(package.quants.quantize(dense.numpy(), kind))
