"""The ``quantization_config`` of an artifact, validated: it is untrusted input."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qdc.errors import InvalidArtifact, nearest
from qdc.format.codec import Codec
from qdc.ir.activations import LayerActivations
from qdc.jsontext import model_of
from qdc.models.document_tokens import DocumentTokens

FORMAT_VERSION = 2
"""The newest that is read; what is written is the oldest that says all, see ``written_version``."""
ACTIVATIONS = 2
"""The first version whose linears may do something with what they read."""
QUANTIZATION = "quantization_config"
AGAIN = "copy the folder again, or compile the model again"
GUARD = {"transformers_weights": "import qdc.hf before from_pretrained: qdc has packed the weights"}
"""Keeps transformers from loading an artifact without ``qdc.hf``.

It takes the field for the name of the file with the weights, and refuses one that is none. Without
the field it would warn that it knows no quantization method qdc, and go on with random weights.
"""


class QuantizationConfig(BaseModel):
    """What a reader needs to know of the layers; fields that it does not need are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    quant_method: Literal["qdc"]
    format_version: int = Field(ge=1)
    pipeline: str = ""
    frontend: Literal["fx", "export", "module"] = "fx"
    """Whose model the artifact is of: our own implementation's, a class of transformers, or, for
    ``module``, a torch module that its caller builds."""
    causal: bool = False
    """Whether it is a decoder of transformers that looks back only, as it was trained."""
    document_tokens: DocumentTokens = "auto"
    """What the compile was asked to put around documents; readers of the artifact do the same."""
    layers: dict[str, dict[str, Any]]
    """For each quantized layer, by full path: ``codec`` and the codec's fields."""
    added_biases: tuple[str, ...] = ()
    """Full paths of the linears that have a bias and have none in the model's configuration."""
    activations: dict[str, LayerActivations] = {}
    """By full path of a quantized linear; format version 2."""
    mask_token: int | None = Field(default=None, ge=0)
    """Token that masked places hold, where linears tell them from visible ones."""
    stages: tuple[tuple[str, ...], ...] = ()
    """Full paths of layers that are said to read one value. A hint: who joins them must look."""


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own fields of a ``config.json``: without what an artifact adds to them."""
    return {k: v for k, v in config.items() if k not in (QUANTIZATION, *GUARD)}


def parse_quantization(config: Mapping[str, Any]) -> QuantizationConfig:
    """Read and check the configuration. Raises ``InvalidArtifact``."""
    if QUANTIZATION not in config:
        raise InvalidArtifact(
            "config.json has no quantization_config: the folder is a plain checkpoint",
            help="compile it first: qdc compile MODEL -o OUT",
        )
    try:
        parsed = model_of(QuantizationConfig, config[QUANTIZATION])
    except ValidationError as error:
        raise InvalidArtifact(
            f"quantization_config is not one of qdc: {_first(error)}", help=AGAIN
        ) from error
    if parsed.format_version > FORMAT_VERSION:
        raise InvalidArtifact(
            f"the artifact has format version {parsed.format_version}, "
            f"this qdc reads up to {FORMAT_VERSION}",
            help="update qdc, or compile the model again with this one",
        )
    if parsed.format_version < ACTIVATIONS and parsed.activations:
        raise InvalidArtifact(
            f"the artifact has format version {parsed.format_version} and names activations, "
            f"which version {ACTIVATIONS} has",
            help=AGAIN,
        )
    by_class = [path for path, each in parsed.activations.items() if each.by_class]
    if by_class and parsed.mask_token is None:
        raise InvalidArtifact(
            "linears tell masked tokens from visible ones, and mask_token is not given",
            where=by_class[:3],
        )
    others = sorted(set(parsed.activations) - set(parsed.layers))
    if others:
        raise InvalidArtifact(
            "activations are named of layers that are not quantized", where=others
        )
    return parsed


def written_version(*, activations: bool) -> int:
    """The format version of an artifact: readers of the first would ignore activations."""
    return ACTIVATIONS if activations else 1


def parse_codec(layer: str, fields: Mapping[str, Any], codecs: Mapping[str, type[Codec]]) -> Codec:
    """Build the codec of one layer from untrusted fields. Raises ``InvalidArtifact``."""
    name = fields.get("codec")
    if not isinstance(name, str) or name not in codecs:
        raise InvalidArtifact(
            f"no codec is called {name!r}",
            where=[layer],
            help=nearest(str(name), codecs) + "; load the plugin that wrote it with --plugin",
        )
    try:
        return model_of(codecs[name], {k: v for k, v in fields.items() if k != "codec"})
    except ValidationError as error:
        raise InvalidArtifact(
            f"the codec's settings are wrong: {_first(error)}", where=[layer], help=AGAIN
        ) from error


def _first(error: ValidationError) -> str:
    """The first field at fault, the type or value that it needs, and what was found there."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    given = "" if first["type"] == "missing" else f" (given {first['input']!r:.80})"
    return f"{place} {first['msg']}{given}".lstrip()
