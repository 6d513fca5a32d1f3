"""Put an artifact of a module back into a fresh module, which its caller builds."""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdc.artifact.config import QuantizationConfig, parse_codec, parse_quantization
from qdc.artifact.digests import Digests
from qdc.artifact.writer import CONFIG
from qdc.checkpoint.folder import Checkpoint
from qdc.checkpoint.held import MODULE, fingerprint, persistent_buffers
from qdc.checkpoint.layout import INDEX
from qdc.errors import InvalidArtifact, InvalidCheckpoint, QdcError
from qdc.format.codec import Codec
from qdc.ir.activations import LayerActivations
from qdc.ir.keys import file_key
from qdc.ir.types import SHORT
from qdc.numerics.hadamard import transform_size
from qdc.pipeline.builder import build_backend
from qdc.pipeline.registry import Registry
from qdc.runtime.activations import refuse_activations
from qdc.runtime.auto import chosen_backend, tell_dense
from qdc.runtime.dense import DenseRuntime
from qdc.runtime.load import FLOATING, add_biases
from qdc.runtime.weights import StoredWeights, Wanted, dense_tensors

CLOSE = 1e-3
"""Relative difference of a buffer's figures that another machine's rounding may make."""


@dataclass(frozen=True)
class ModuleWeights(StoredWeights):
    """The tensors of an artifact, and those of the module that its forward does not read."""

    unread: Mapping[str, Tensor] = field(kw_only=True)

    def dense(self, name: str) -> Tensor:
        """A parameter of the module, of inputs as they are: who reads it may be no linear."""
        return self.unrotated(name)

    def plain(self, name: str) -> Tensor:
        """A tensor that is no part of a quantized layer, as it is stored, or as it was."""
        return self.unread[name] if name in self.unread else super().plain(name)


def load_module(
    folder: Path,
    module: nn.Module,
    registry: Registry,
    device: str | torch.device,
    dtype: torch.dtype | None,
    backend: str = "reference",
    *,
    verify: bool = True,
) -> nn.Module:
    """Give a module the tensors of an artifact that was compiled from one like it.

    Nothing of the module changes unless the artifact fits it. Should data of the artifact be found
    damaged while it is read, the module is left with a part of it, and is of no use.

    Args:
        folder: what ``qdc.compile(module, ...)`` wrote.
        module: built as the compiled one was, whatever its weights; on meta too, buffers aside.
        registry: knows the codecs and the backends.
        device: where the weights go.
        dtype: of all weights, or of those that are not packed; the backend's own if None. Buffers
            keep theirs.
        backend: who runs it.
        verify: whether what is read must have the digests that the artifact was written with.

    Returns:
        The module itself, in eval mode, with quantized layers put in.

    Raises:
        InvalidArtifact: the folder is damaged, or of no module.
        QdcError: the module is another one; all that differs is named. Or the backend cannot run.
    """
    chosen = chosen_backend(backend, device, dtype)
    runtime = build_backend(chosen, registry).runtime(torch.device(device), dtype)
    digests = Digests.of(folder) if verify else Digests.unread(folder)
    digests.check(name for name in (CONFIG, INDEX) if (folder / name).exists())
    try:
        source = Checkpoint(folder)
        quantization = parse_quantization(source.config)
    except InvalidCheckpoint as error:
        raise InvalidArtifact(error.what, where=error.where, help=error.help) from error
    if quantization.frontend != MODULE:
        raise InvalidArtifact(
            "the artifact is of a checkpoint, not of a module", help="leave module out"
        )
    refuse_activations(
        quantization.activations,
        "what a module of your own calls is not known",
        "compile it without the pass that changes what linears read",
        # Dense weights have rotations multiplied out, packed linears compute them.
        rotates=runtime.rotates or isinstance(runtime, DenseRuntime),
    )
    known = registry.codecs()
    codecs = {
        layer: parse_codec(layer, fields, known) for layer, fields in quantization.layers.items()
    }
    described = _described(source.config)
    unread = {n: t for n, t in module.state_dict().items() if n in described["unread"]}
    hollow = _on_meta(module)
    _check(module, hollow, quantization, codecs, source, described)
    tell_dense(backend, device, dtype, codecs)
    runtime.check(hollow, codecs)
    buffers = list(persistent_buffers(module))
    add_biases(module, quantization.added_biases)
    weights = ModuleWeights(
        codecs,
        quantization.stages,
        traceable=False,
        activations=quantization.activations,
        source=source,
        unread=unread,
    )
    if verify:
        digests.tell_missing()
    try:
        with digests.beside(path.name for path in source.files):
            runtime.fill(module, weights)
            _restore_buffers(module, buffers, source)
    except InvalidCheckpoint as error:
        raise InvalidArtifact(error.what, where=error.where, help=error.help) from error
    module.to(device).eval().requires_grad_(False)
    return module


def _described(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration says of the module. Raises ``InvalidArtifact``."""
    found = config.get(MODULE)
    if not isinstance(found, dict):
        raise InvalidArtifact("config.json does not describe the module of the artifact")
    unread, buffers = found.get("unread", []), found.get("buffers", {})
    if not (isinstance(unread, list) and isinstance(buffers, dict)):
        raise InvalidArtifact("config.json describes the module of the artifact in another form")
    return {"class": str(found.get("class")), "unread": set(map(str, unread)), "buffers": buffers}


def _on_meta(module: nn.Module) -> nn.Module:
    """A copy without values."""
    tensors = (*module.parameters(), *module.buffers())
    memo: dict[int, Any] = {}
    for tensor in tensors:
        bare = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(bare, requires_grad=False) if is_parameter else bare
    return deepcopy(module, memo)


def _check(
    module: nn.Module,
    hollow: nn.Module,
    quantization: QuantizationConfig,
    codecs: Mapping[str, Codec],
    source: Checkpoint,
    described: Mapping[str, Any],
) -> None:
    """Compare module and artifact. Raises ``QdcError`` naming everything that differs."""
    add_biases(hollow, quantization.added_biases)
    wanted = {n: w for n, w in dense_tensors(hollow).items() if n not in described["unread"]}
    for name, buffer in persistent_buffers(hollow).items():
        dtype = SHORT.get(str(buffer.dtype).removeprefix("torch."))
        wanted[name] = (None if buffer.is_floating_point() else dtype, tuple(buffer.shape))
    problems = [*_layers(wanted, codecs), *_tensors(wanted, source)]
    problems += _rotations(hollow, quantization.activations)
    problems += _buffers(module, source, described["buffers"])
    if problems:
        raise QdcError(
            f"the module is not like the {described['class']} that was compiled: "
            f"{len(problems)} differences",
            where=problems,
            help="build it with the arguments that the compiled one was built with",
        )


def _layers(wanted: dict[str, Wanted], codecs: Mapping[str, Codec]) -> Iterator[str]:
    """Put what codecs store in the place of the weights of quantized layers."""
    for layer, codec in codecs.items():
        _, shape = wanted.pop(file_key(layer), (None, ()))
        if shape != (codec.rows, codec.columns):
            has = f"its weight is {list(shape)}" if shape else "no weight"
            yield f"{layer}: {has} in the module, {codec.rows} x {codec.columns} in the artifact"
        for suffix, stored in codec.specification().items():
            wanted[file_key(layer, suffix)] = (stored.dtype, stored.shape)


def _rotations(hollow: nn.Module, activations: Mapping[str, LayerActivations]) -> Iterator[str]:
    """What is looked up has no inputs to be rotated, and odd numbers of columns no transform."""
    parts = dict(hollow.named_modules())
    for path, does in activations.items():
        weight = getattr(parts.get(path), "weight", None)
        if does.rotation is None or weight is None:
            continue
        if isinstance(parts[path], nn.Embedding):
            yield f"{path}: an embedding in the module, rotated in the artifact"
        elif transform_size(weight.shape[1]) < 2:
            yield f"{path}: {weight.shape[1]} columns, which cannot be rotated"


def _tensors(wanted: Mapping[str, Wanted], source: Checkpoint) -> Iterator[str]:
    for name in sorted(set(wanted) ^ set(source.headers)):
        yield f"{name}: {'in the module' if name in wanted else 'in the artifact'} alone"
    for name, (dtype, shape) in wanted.items():
        header = source.headers.get(name)
        if header is None:
            continue
        dtypes = FLOATING if dtype is None else (dtype,)
        if header.shape != shape or header.dtype not in dtypes:
            asked = f"{dtype or 'floating'}{list(shape)}"
            yield f"{name}: {asked} in the module, {header} in the artifact"


def _buffers(module: nn.Module, source: Checkpoint, described: Mapping[str, Any]) -> Iterator[str]:
    """Buffers that are not stored must be those that the compiled module had."""
    for name, buffer in module.named_buffers():
        if name in source.headers:
            continue
        if buffer.is_meta:
            yield f"{name}: a buffer without values, which the artifact does not hold"
            continue
        found, expected = fingerprint(buffer), described.get(name)
        if not _alike(found, expected):
            yield f"{name}: a buffer with other values: {found} instead of {expected}"


def _alike(found: list[Any], expected: object) -> bool:
    if not isinstance(expected, list) or len(expected) != len(found):
        return False
    if found[:2] != expected[:2]:
        return False
    figures = list(zip(found[2:], expected[2:], strict=True))
    if not all(isinstance(there, int | float) for _, there in figures):
        return False
    size = max(abs(float(there)) for _, there in figures)
    return all(abs(here - float(there)) <= CLOSE * size for here, there in figures)


def _restore_buffers(module: nn.Module, names: Iterable[str], source: Checkpoint) -> None:
    """Give buffers what is stored, in its own dtype: frequencies that are rounded turn too far."""
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, source.tensor(name))
