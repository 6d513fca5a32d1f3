"""Load a compiled or an uncompiled model as a plain ``torch.nn.Module``.

The reference runtime decodes every quantized layer to a dense weight. An artifact is untrusted:
names, codecs, dtypes and shapes are checked against the model before any data is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qdc.artifact.config import QuantizationConfig, parse_codec, parse_quantization, plain_config
from qdc.artifact.writer import METHOD
from qdc.codec import Codec
from qdc.errors import InvalidArtifact, InvalidCheckpoint
from qdc.frontend.checkpoint import Checkpoint
from qdc.frontend.select import Choice, build_module, choose, holder, show_by_name
from qdc.ir.types import Dimension, ValueType
from qdc.registry import Registry

FLOATING = ("f64", "f32", "f16", "bf16")
Wanted = tuple[str | None, tuple[Dimension, ...]]
"""Dtype and shape of a stored tensor; None allows every floating dtype."""


@dataclass(frozen=True)
class OpenedArtifact:
    """An artifact whose names, codecs, dtypes and shapes are checked; no data is read yet."""

    source: Checkpoint
    quantization: QuantizationConfig
    codecs: Mapping[str, Codec]
    """Of each quantized layer, by full path."""
    module: nn.Module
    """The model on meta, added biases included."""

    @property
    def body(self) -> nn.Module:
        """The part of the module whose state has the artifact's names."""
        return holder(self.module)

    @property
    def names(self) -> dict[str, tuple[int, ...]]:
        """Every dense tensor of the model with its shape; a tied one under its first name alone."""
        return {name: tuple(t.shape) for name, t in _untied(self.body).items()}

    def tensor(self, name: str) -> Tensor:
        """Read one of them: a quantized weight decoded, in fp32. Raises ``InvalidArtifact``."""
        try:
            return _tensor(name, self.codecs, self.source)
        except InvalidCheckpoint as error:
            raise InvalidArtifact(error.what, where=error.where, help=error.help) from error


def open_artifact(folder: Path, registry: Registry) -> OpenedArtifact:
    """Open an artifact and check it against its model. Raises as ``load_artifact``."""
    try:
        source = Checkpoint(folder)
        quantization = parse_quantization(source.config)
        known = registry.codecs()
        codecs = {
            layer: parse_codec(layer, fields, known)
            for layer, fields in quantization.layers.items()
        }
        module = build_module(plain_config(source.config), quantization.frontend)
        body = holder(module)
        _add_biases(body, quantization.added_biases)
        _check(body, codecs, source)
    except InvalidCheckpoint as error:
        raise InvalidArtifact(error.what, where=error.where, help=error.help) from error
    return OpenedArtifact(source, quantization, codecs, module)


def load_artifact(
    folder: Path, registry: Registry, device: str | torch.device, dtype: torch.dtype
) -> nn.Module:
    """Load a compiled model.

    Args:
        folder: what ``qdc compile`` wrote.
        registry: knows the codecs.
        device: where the weights go.
        dtype: of all weights.

    Returns:
        A module in eval mode: ``forward(input_ids, attention_mask=None)`` gives logits.

    Raises:
        InvalidArtifact: the folder is damaged, incomplete, hostile or of a newer version.
        UnsupportedModel: the model's family is not implemented.
    """
    opened = open_artifact(folder, registry)
    state = {name: opened.tensor(name).to(device, dtype) for name in opened.names}
    body, module = opened.body, opened.module
    _fill(body, state)
    return module.to(device).requires_grad_(False)


def load_checkpoint(
    folder: Path, device: str | torch.device, dtype: torch.dtype, choice: Choice = "auto"
) -> nn.Module:
    """Load an uncompiled checkpoint into the same kind of module.

    Raises:
        InvalidCheckpoint: the folder is damaged or incomplete, or is an artifact.
        UnsupportedModel: the model's family is not implemented.
    """
    source = Checkpoint(folder)
    refuse_compiled(source)
    module = build_module(source.config, choose(source.config, choice))
    show_by_name(module, source)
    body = holder(module)
    wanted = _dense_tensors(body)
    compare_tensors(wanted, source.headers, InvalidCheckpoint)
    _fill(body, {name: source.tensor(name).to(device, dtype) for name in wanted})
    return module.to(device).requires_grad_(False)


def refuse_compiled(source: Checkpoint) -> None:
    """Raise ``InvalidCheckpoint`` if the checkpoint is quantized already."""
    if "quantization_config" in source.config:
        settings = source.config["quantization_config"]
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        what = "a qdc artifact" if method == METHOD else "quantized already"
        raise InvalidCheckpoint(
            f"the model is {what}, not a full-precision checkpoint",
            where=[str(source.folder)],
            help="give the checkpoint that it was made from",
        )


def _add_biases(module: nn.Module, paths: tuple[str, ...]) -> None:
    """Give these linears of a module on meta a bias. Raises ``InvalidArtifact``."""
    leaves = dict(module.named_modules())
    for path in paths:
        linear = leaves.get(path)
        if not isinstance(linear, nn.Linear):
            raise InvalidArtifact("added_biases names no linear of the model", where=[path])
        if linear.bias is not None:
            raise InvalidArtifact("added_biases names a linear that has a bias", where=[path])
        linear.bias = nn.Parameter(torch.empty(linear.out_features, device="meta"))


def _check(module: nn.Module, codecs: dict[str, Codec], source: Checkpoint) -> None:
    """Compare what is stored with what the model and the codecs ask for."""
    wanted = _dense_tensors(module)
    for layer, codec in codecs.items():
        _, shape = wanted.pop(f"{layer}.weight", (None, ()))
        if shape != (codec.rows, codec.columns):
            raise InvalidArtifact(
                f"the model has no {codec.rows} x {codec.columns} weight there", where=[layer]
            )
        for suffix, stored in codec.specification().items():
            wanted[f"{layer}.{suffix}"] = (stored.dtype, stored.shape)
    compare_tensors(wanted, source.headers, InvalidArtifact)


def _dense_tensors(module: nn.Module) -> dict[str, Wanted]:
    """Every stored tensor of the module; a tied one stands under its first name alone."""
    return {name: (None, tuple(tensor.shape)) for name, tensor in _untied(module).items()}


def _untied(module: nn.Module) -> dict[str, Tensor]:
    tied = _tied(module)
    return {name: t for name, t in module.state_dict().items() if name not in tied}


def _tied(module: nn.Module) -> dict[str, str]:
    """Further names of parameters that have two, each with the first name."""
    first = {parameter: name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[parameter] for name, parameter in every if first[parameter] != name}


def _fill(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a module on meta its tensors; what was tied is tied again."""
    tied = _tied(module)
    aliases = {name: state[first] for name, first in tied.items()}
    module.load_state_dict({**state, **aliases}, strict=True, assign=True)
    for name, first in tied.items():
        path, _, role = name.rpartition(".")
        setattr(module.get_submodule(path), role, module.get_parameter(first))


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


def _tensor(name: str, codecs: Mapping[str, Codec], source: Checkpoint) -> Tensor:
    layer = name.removesuffix(".weight")
    codec = codecs.get(layer)
    if codec is None:
        return source.tensor(name)
    stored = {suffix: source.tensor(f"{layer}.{suffix}") for suffix in codec.specification()}
    codec.check(stored, layer)
    return codec.dense(codec.unpack(stored))
