"""Prove with the library itself that packed integers are the artifact's weights.

What is compared to the last bit: every packed layer, as ``compressed-tensors`` decompresses it from
the written files and the written configuration, with what the artifact decodes to, rounded to the
dtype of the scales; every other tensor likewise; and the layers that the configuration means, as
the library matches them, with those that are packed.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from qdc.artifact.config import QUANTIZATION
from qdc.checkpoint.folder import Checkpoint
from qdc.errors import ExportDiffers
from qdc.exporting.packing import Packing, library
from qdc.exporting.published import published_layers, published_tensors
from qdc.exporting.report import Verification
from qdc.ir.keys import file_key, layer_of
from qdc.ir.tensors import torch_dtype
from qdc.runtime.load import OpenedArtifact
from qdc.units import StepProgress


def verify_packed(
    opened: OpenedArtifact, folder: Path, packing: Packing, notify: StepProgress
) -> Verification:
    """Compare a written checkpoint with the artifact it was made from.

    Raises:
        ExportDiffers: they are not equal; names the tensors and the layers.
    """
    package, written = library(), Checkpoint(folder)
    config = package.quantization.QuantizationConfig.model_validate(written.config[QUANTIZATION])
    (scheme,) = config.config_groups.values()
    dtype = torch_dtype(packing.dtype)
    differing, whole = [], published_tensors(opened.module, opened.names)
    for done, (key, made) in enumerate(whole.items()):
        if layer_of(made.names[0]) in packing.layers:
            found = _decompressed(package, written, layer_of(key), scheme)
        else:
            found = written.tensor(key) if key in written else None
        expected = made.join(lambda name: opened.tensor(name).to(dtype))
        if found is None or found.dtype != dtype or not bool((found == expected).all()):
            differing.append(key)
        notify("compare tensors", done + 1, len(whole))
    rows = published_layers(opened.module)
    ignored = [*config.ignore, *(path for path in rows if rows[path] in config.ignore)]
    meant = {
        path for path, _ in package.utils.match_named_modules(opened.body, scheme.targets, ignored)
    }
    other = sorted(meant ^ set(packing.layers))
    if differing or other:
        raise ExportDiffers(
            f"the export is not the artifact: {len(differing)} of {len(whole)} tensors differ, "
            f"{len(other)} layers are packed and not said to be, or the other way round",
            where=[*differing, *other],
            help="the disk or the memory has changed what was written, or this is a bug of qdc or "
            f"of compressed-tensors {package.__version__}",
        )
    return Verification(tensors=len(whole))


def _decompressed(package: Any, written: Checkpoint, layer: str, scheme: Any) -> Tensor | None:
    """One weight as the library reads it; None where a tensor of it is missing."""
    compressor = package.compressors.pack_quantized.PackedQuantizationCompressor
    keys = {name: file_key(layer, name) for name in compressor.compression_param_names(scheme)}
    if any(key not in written for key in keys.values()):
        return None
    stored = {name: written.tensor(key) for name, key in keys.items()}
    found: Tensor = compressor.decompress(stored, scheme)["weight"]
    return found
