"""Load a compiled or an uncompiled model as a plain ``torch.nn.Module``.

A backend says what stands in the place of quantized layers: the reference decodes each to a dense
weight. An artifact is untrusted: names, codecs, dtypes and shapes are checked against the model
before any data is read, whichever backend it is for.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qdc.artifact.config import QuantizationConfig, parse_codec, parse_quantization, plain_config
from qdc.artifact.digests import Digests
from qdc.artifact.writer import CONFIG
from qdc.checkpoint.compiled import refuse_compiled
from qdc.checkpoint.folder import Checkpoint, refuse_broken
from qdc.checkpoint.layout import INDEX
from qdc.errors import InvalidArtifact, InvalidCheckpoint, UnsupportedModel
from qdc.format.codec import Codec
from qdc.frontend.native import looks_back
from qdc.frontend.select import Choice, FrontEnd, build_module, choose, holder, show_by_name
from qdc.ir.activations import LayerActivations
from qdc.ir.keys import file_key
from qdc.ir.types import ValueType
from qdc.models.families import BUILT_IN, Families
from qdc.numerics.finite import is_finite
from qdc.pipeline.backendbase import Runtime
from qdc.pipeline.builder import build_backend
from qdc.pipeline.registry import Registry
from qdc.runtime.activations import (
    attach,
    beyond_rotations,
    check_activations,
    refuse_activations,
)
from qdc.runtime.auto import chosen_backend, tell_dense
from qdc.runtime.integers import is_integer
from qdc.runtime.weights import StoredWeights, Wanted, aligned, dense_tensors, place, tied_names

FLOATING = ("f64", "f32", "f16", "bf16")


@dataclass(frozen=True)
class OpenedArtifact:
    """An artifact whose names, codecs, dtypes and shapes are checked; no data is read yet."""

    source: Checkpoint
    quantization: QuantizationConfig
    codecs: Mapping[str, Codec]
    """Of each quantized layer, by full path."""
    module: nn.Module
    """The model on meta, added biases included."""
    digests: Digests
    """Of its files; configuration and index have theirs."""

    @property
    def body(self) -> nn.Module:
        """The part of the module whose state has the artifact's names."""
        return holder(self.module)

    @property
    def names(self) -> dict[str, tuple[int, ...]]:
        """Every dense tensor of the model with its shape; a tied one under its first name alone."""
        found = dense_tensors(self.body).items()
        return {name: tuple(map(int, shape)) for name, (_, shape) in found}

    @property
    def weights(self) -> StoredWeights:
        """The tensors, for a backend; reading them raises ``InvalidCheckpoint`` too."""
        own, stages = self.quantization.frontend == "fx", self.quantization.stages
        return StoredWeights(
            self.codecs,
            stages,
            traceable=own,
            source=self.source,
            activations=self.quantization.activations,
        )

    def verified(self) -> AbstractContextManager[None]:
        """Compare the digests of all files with tensors while they are read.

        Raises:
            InvalidArtifact: some differ, as is said when the block is left.
        """
        return self.digests.beside(path.name for path in self.source.files)

    def tensor(self, name: str) -> Tensor:
        """Read one of them: a quantized weight decoded, in fp32, and of inputs as they are.

        Raises ``InvalidArtifact``.
        """
        try:
            return self.weights.unrotated(name)
        except InvalidCheckpoint as error:
            raise InvalidArtifact(error.what, where=error.where, help=error.help) from error


def open_artifact(folder: Path, registry: Registry, *, verify: bool = True) -> OpenedArtifact:
    """Open an artifact and check it against its model. Raises as ``load_artifact``."""
    digests = Digests.of(folder) if verify else Digests.unread(folder)
    digests.check(name for name in (CONFIG, INDEX) if (folder / name).exists())
    try:
        source = Checkpoint(folder)
        quantization = parse_quantization(source.config)
        front_end = front_end_of(quantization)
        known = registry.codecs()
        codecs = {
            layer: parse_codec(layer, fields, known)
            for layer, fields in quantization.layers.items()
        }
        module = build_module(
            plain_config(source.config),
            front_end,
            registry.families,
            causal=quantization.causal,
        )
        body = holder(module)
        add_biases(body, quantization.added_biases)
        check_activations(body, quantization.activations)
        _check(body, codecs, quantization.activations, source)
    except InvalidCheckpoint as error:
        raise InvalidArtifact(error.what, where=error.where, help=error.help) from error
    if verify:
        digests.tell_missing()
    return OpenedArtifact(source, quantization, codecs, module, digests)


def front_end_of(quantization: QuantizationConfig) -> FrontEnd:
    """Who builds the model. Raises ``UnsupportedModel`` where just its user can."""
    if quantization.frontend == "module":
        raise UnsupportedModel(
            "the artifact is of a torch module, which has no configuration to be built from",
            help="build the module in Python, then qdc.load(OUT, module=...); qdc show and "
            "qdc report need no model",
        )
    return quantization.frontend


def load_artifact(
    folder: Path,
    registry: Registry,
    device: str | torch.device,
    dtype: torch.dtype | None,
    backend: str = "reference",
    *,
    verify: bool = True,
) -> nn.Module:
    """Load a compiled model.

    Args:
        folder: what ``qdc compile`` wrote.
        registry: knows the codecs, the backends and the model families.
        device: where the weights go.
        dtype: of all weights, or of those that are not packed; the backend's own if None.
        backend: who runs it, as ``name`` or ``name{option=value}``; ``auto`` is ``cpu`` on a CPU
            and ``reference`` elsewhere.
        verify: whether what is read must have the digests that the artifact was written with.

    Returns:
        A module in eval mode: ``forward(input_ids, attention_mask=None)`` gives logits.

    Raises:
        QdcError: the backend cannot run on this device, with this dtype, or one of the layers.
        InvalidArtifact: the folder is damaged, incomplete, hostile or of a newer version.
        UnsupportedModel: the model's family is not implemented.
    """
    chosen = chosen_backend(backend, device, dtype)
    runtime = build_backend(chosen, registry).runtime(torch.device(device), dtype)
    opened = open_artifact(folder, registry, verify=verify)
    tell_dense(backend, device, dtype, opened.codecs)
    return fill_artifact(opened, runtime, chosen)


def fill_artifact(opened: OpenedArtifact, runtime: Runtime, name: str) -> nn.Module:
    """Give the module of an artifact its tensors, as a runtime holds them.

    Args:
        opened: the artifact; its module is filled, and no longer on meta.
        runtime: on its own device and in its own dtype.
        name: what the runtime is called where it refuses something.

    Raises:
        QdcError: the runtime cannot run the model or one of the layers.
        InvalidArtifact: data are damaged.
    """
    body, module = opened.body, opened.module
    activations = opened.quantization.activations
    codecs = opened.codecs.items()
    runtime.check(body, {p: c for p, c in codecs if not is_integer(c, activations.get(p))})
    around = beyond_rotations(activations) if runtime.rotates else activations
    if not runtime.follows_activations:
        refuse_activations(
            activations,
            f"the backend {name} does not follow",
            "load with the backend reference",
            rotates=runtime.rotates,
        )
    try:
        with opened.verified():
            runtime.fill(body, opened.weights)
            mask_token = opened.quantization.mask_token
            attach(module, body, opened.weights, around, mask_token, runtime.device)
    except InvalidCheckpoint as error:
        raise InvalidArtifact(error.what, where=error.where, help=error.help) from error
    return module.to(runtime.device).requires_grad_(False)


def load_checkpoint(
    folder: Path,
    device: str | torch.device,
    dtype: torch.dtype,
    choice: Choice = "auto",
    families: Families = BUILT_IN,
) -> nn.Module:
    """Load an uncompiled checkpoint into the same kind of module.

    Raises:
        InvalidCheckpoint: the folder is damaged or incomplete, tensors hold NaN or infinity, or it
            is an artifact.
        UnsupportedModel: the model's family is not implemented.
    """
    source = Checkpoint(folder)
    refuse_compiled(source)
    front_end = choose(source.config, choice, families)
    causal = front_end == "export" and looks_back(source.config, folder)
    module = build_module(source.config, front_end, families, causal=causal)
    show_by_name(module, source)
    body = holder(module)
    wanted = dense_tensors(body)
    compare_tensors(wanted, source.headers, InvalidCheckpoint)
    state, broken = {}, []
    for name in wanted:
        tensor = source.tensor(name)
        if not is_finite(tensor):
            broken.append(name)
        state[name] = aligned(tensor.to(device, dtype))
    refuse_broken(broken)
    place(body, state, tied_names(body))
    return module.to(device).requires_grad_(False)


def add_biases(module: nn.Module, paths: tuple[str, ...]) -> None:
    """Give these linears of a module on meta a bias. Raises ``InvalidArtifact``."""
    leaves = dict(module.named_modules())
    for path in paths:
        linear = leaves.get(path)
        if not isinstance(linear, nn.Linear):
            raise InvalidArtifact("added_biases names no linear of the model", where=[path])
        if linear.bias is not None:
            raise InvalidArtifact("added_biases names a linear that has a bias", where=[path])
        linear.bias = nn.Parameter(torch.empty(linear.out_features, device="meta"))


def _check(
    module: nn.Module,
    codecs: dict[str, Codec],
    activations: Mapping[str, LayerActivations],
    source: Checkpoint,
) -> None:
    """Compare what is stored with what the model and the codecs ask for."""
    wanted = dense_tensors(module)
    for layer, codec in codecs.items():
        _, shape = wanted.pop(file_key(layer), (None, ()))
        if shape != (codec.rows, codec.columns):
            raise InvalidArtifact(
                f"the model has no {codec.rows} x {codec.columns} weight there", where=[layer]
            )
        for suffix, stored in codec.specification().items():
            wanted[file_key(layer, suffix)] = (stored.dtype, stored.shape)
    for layer, does in activations.items():
        for suffix, stored in does.specification(codecs[layer].columns).items():
            wanted[file_key(layer, suffix)] = (stored.dtype, stored.shape)
    compare_tensors(wanted, source.headers, InvalidArtifact)


def compare_tensors(
    wanted: Mapping[str, Wanted],
    found: Mapping[str, ValueType],
    error: type[InvalidArtifact] | type[InvalidCheckpoint],
) -> None:
    """Raise ``error`` unless exactly the wanted tensors are there, with their dtypes and shapes."""
    missing = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted))
    if missing or extra:
        raise error(
            f"{len(missing)} tensors are missing, {len(extra)} have no place in the model",
            where=missing + extra,
        )
    wrong = []
    for name, (dtype, shape) in wanted.items():
        dtypes = FLOATING if dtype is None else (dtype,)
        if found[name].shape != shape or found[name].dtype not in dtypes:
            wrong.append(f"{name}: {found[name]}")
    if wrong:
        raise error("tensors have the wrong dtype or shape", where=wrong)
