"""Build the class that transformers has for a checkpoint, without weights and without its code.

The class follows from ``model_type`` and ``architectures`` alone. Code beside a checkpoint is never
run: a model that needs it is refused. Decoders with a mask token are built with
``is_causal = False``: they fill gaps from both sides. Those without stay as they are.
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qdc.errors import UnsupportedModel
from qdc.frontend.body import BodyModel
from qdc.frontend.native_config import NOT_PARSED, first_line, parse_native, quiet
from qdc.frontend.unrolled import unroll_experts
from qdc.ir.facts import ModelFacts
from qdc.models.configuration import DEEPEST, MOST_EXPERTS
from qdc.models.families import BUILT_IN
from qdc.text.tokenizer import TOKENIZER, load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

POOLING = "add_pooling_layer"
WIDEST = 1 << 24
MOST_LABELS = 1 << 16
"""transformers makes a name for each, whether or not the model has a classifier."""
LAYERS, EXPERTS = ("layer", "layers"), ("experts",)
SIZES = (
    *("size", "dim", "head", "heads", "embd", "inner", "model", "ff", "ctx"),
    *("embeddings", "positions", *EXPERTS),
)
"""How the names of fields end that decide what is allocated."""


class NativeModel(BodyModel):
    """A transformers module, called as every model here is."""

    untraceable: ClassVar[str] = (
        "a model whose forward branches on the values of tensors needs an implementation of our "
        "own; qdc families lists those"
    )
    body: "PreTrainedModel"

    def __init__(self, body: "PreTrainedModel", *, causal: bool = False) -> None:
        super().__init__()
        self.body, self.causal = body, causal
        accepted = inspect.signature(body.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in accepted else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """``i64[batch, T]``, mask ``[batch, T]`` (0 = padding) ``-> [batch, T, vocab]`` logits.

        A model without a head gives its last hidden state, ``[batch, T, width]``.
        """
        found = self.body(input_ids=input_ids, attention_mask=attention_mask, **self._options)
        result: Tensor = found.logits if "logits" in found else found.last_hidden_state
        return result

    @property
    def has_head(self) -> bool:
        """Whether it gives logits."""
        found: nn.Module | None = self.body.get_output_embeddings()  # type: ignore[no-untyped-call]
        return found is not None

    def example(self) -> "NativeModel":
        """A copy without values, buffers included."""
        return deepcopy(self).to("meta")


class _ParametersOnMeta(TorchFunctionMode):
    """Uninitialised tensors, which is how parameters begin, go to meta; what is computed stays.

    So that buffers, as the frequencies of rotary embeddings, have their values.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build_native(config: Mapping[str, Any], *, causal: bool = False) -> NativeModel:
    """Build the module of a configuration: parameters on meta, buffers with their values.

    Args:
        config: of the model.
        causal: whether a decoder looks back only, as it was trained; see ``looks_back``.

    Raises:
        UnsupportedModel: transformers has no class for it, or one that qdc does not compile.
    """
    auto, parsed = find_class(config, causal=causal)
    body = _build(auto, parsed)
    for name, parameter in list(body.named_parameters(remove_duplicate=False)):
        if parameter.device.type != "meta":
            owner, _, leaf = name.rpartition(".")
            setattr(body.get_submodule(owner), leaf, nn.Parameter(parameter.to("meta")))
    body.tie_weights(recompute_mapping=False)
    unroll_experts(body)
    hollow = [name for name, buffer in body.named_buffers() if buffer.device.type == "meta"]
    if hollow:
        raise UnsupportedModel("buffers of the model have no values of their own", where=hollow)
    causal = causal and _is_decoder(auto, parsed)
    return NativeModel(body, causal=causal).eval().requires_grad_(False)


def native_facts(native: NativeModel, folder: Path) -> ModelFacts:
    """What the configuration and the tokenizer say of a model.

    Raises:
        UnsupportedModel: the mask token is none of the model's, or there is no length.
    """
    config = native.body.config
    tokenizer = load_tokenizer(folder) if (folder / TOKENIZER).is_file() else None
    vocabulary = int(native.body.get_input_embeddings().get_parameter("weight").shape[0])
    mask = getattr(config, "mask_token_id", None)
    if mask is None and tokenizer is not None:
        mask = tokenizer.mask_token_id
    if mask is not None and not (isinstance(mask, int) and 0 <= mask < vocabulary):
        raise UnsupportedModel(
            f"the mask token {mask} is outside the {vocabulary} embeddings",
            where=["config.json: mask_token_id", "tokenizer_config.json: mask_token"],
            help="write the id of the model's mask token to config.json as mask_token_id",
        )
    lengths = [
        length
        for length in (
            getattr(config, "max_position_embeddings", None),
            None if tokenizer is None else tokenizer.model_max_length,
        )
        if isinstance(length, int) and 0 < length < 1 << 40
    ]
    if not lengths:
        raise UnsupportedModel(
            "the configuration gives no longest input",
            help="write it to config.json as max_position_embeddings",
        )
    return ModelFacts(
        family=str(config.model_type),
        mask_token_id=mask,
        vocabulary=vocabulary,
        max_length=min(lengths),
        logits_shift=int(native.causal),
        attention_block=1 if native.causal else None,
    )


def looks_back(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether a decoder stays causal: neither its configuration nor its tokenizer has a mask token.

    One that has a mask token was trained to fill gaps, and is built to look both ways.
    """
    if config.get("mask_token_id") is not None:
        return False
    has_tokenizer = (folder / TOKENIZER).is_file()
    return not has_tokenizer or load_tokenizer(folder).mask_token_id is None


def find_class(
    config: Mapping[str, Any], *, causal: bool = False
) -> tuple[Any, "PretrainedConfig"]:
    """Choose the class by ``architectures`` and parse the configuration.

    Args:
        config: of the model.
        causal: leave a decoder as it is; else it is told to look both ways.

    Returns:
        The auto class of transformers that builds it, and the configuration.

    Raises:
        UnsupportedModel: there is none, with the reason.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    named, kind = architectures(config), config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING or not _is_native(kind):
        raise refusal(config, f"transformers has no model type {kind!r}")
    _check_sizes(config)
    parsed = parse_native(kind, {name: config[name] for name in config if name not in NOT_PARSED})
    candidates: dict[str, Any] = {}
    for auto in (AutoModelForMaskedLM, AutoModelForCausalLM, AutoModel):
        found = auto._model_mapping.get(type(parsed), None)
        for candidate in found if isinstance(found, tuple) else (found,):
            if candidate is not None:
                candidates.setdefault(candidate.__name__, auto)
    chosen = next((name for name in named if name in candidates), None)
    if chosen is None:
        known = ", ".join(candidates) or "no class of it"
        raise refusal(config, f"of the model type {kind}, qdc compiles {known}")
    if getattr(parsed, "is_encoder_decoder", False):
        raise refusal(config, "it has an encoder and a decoder")
    fills = type(parsed) in AutoModelForMaskedLM._model_mapping
    if not causal and (candidates[chosen] is AutoModelForCausalLM or not fills):
        parsed.is_causal = False
    return candidates[chosen], parsed


def _is_decoder(auto: Any, config: "PretrainedConfig") -> bool:
    """Whether a class, or the one that puts a head on it, predicts the next token."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    fills = type(config) in AutoModelForMaskedLM._model_mapping
    writes = type(config) in AutoModelForCausalLM._model_mapping
    return auto is AutoModelForCausalLM or (writes and not fills)


def _is_native(kind: str) -> bool:
    """Whether a model type is transformers' own: ``qdc.hf`` and others register further ones."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[kind].__module__.startswith("transformers.")


def refusal(config: Mapping[str, Any], reason: str) -> UnsupportedModel:
    """The error for a model that no front end takes, with what is supported."""
    named = ", ".join(architectures(config)) or "a model without architectures"
    beside = "; the model's own code lies beside it" if "auto_map" in config else ""
    return UnsupportedModel(
        f"no model family here implements {named}",
        where=[f"{reason}{beside}"],
        help=f"supported architectures: {BUILT_IN.supported()}, those of a plugin (--plugin FILE), "
        "and encoders and decoders that transformers itself implements; code beside a checkpoint "
        "is never run",
    )


def architectures(config: Mapping[str, Any]) -> list[str]:
    """The classes that a configuration names."""
    claimed = config.get("architectures")
    return [str(name) for name in claimed] if isinstance(claimed, list) else []


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Refuse sizes that no model has, before anything is allocated for them."""
    numbers = list(_numbers(config))
    odd = [f"{name}: {value}" for name, value in numbers if value > _largest(name)]
    layers = max((value for name, value in numbers if name.endswith(LAYERS)), default=1)
    experts = max((value for name, value in numbers if name.endswith(EXPERTS)), default=1)
    if not odd and layers * experts > MOST_EXPERTS:
        odd = [f"{layers} layers of {experts} experts"]
    if odd:
        raise UnsupportedModel("config.json gives sizes that no model has", where=odd)


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Whole numbers of a configuration and of those inside it, by the names of their fields."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield name, value


def _largest(name: str) -> float:
    """The largest value that a field of this name may have."""
    if name.endswith(LAYERS):
        return DEEPEST
    if name.endswith("labels"):
        return MOST_LABELS
    return WIDEST if name.endswith(SIZES) else math.inf


def _build(auto: Any, config: "PretrainedConfig") -> "PreTrainedModel":
    """Build the class. Raises ``UnsupportedModel`` with the reason of transformers."""
    settings: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": torch.float32}
    kind = auto._model_mapping[type(config)]
    if not isinstance(kind, tuple) and POOLING in inspect.signature(kind.__init__).parameters:
        settings[POOLING] = False
    try:
        with _ParametersOnMeta(), quiet():
            body: PreTrainedModel = auto.from_config(config, trust_remote_code=False, **settings)
    except Exception as error:  # each model class raises what it likes
        raise UnsupportedModel(
            f"transformers cannot build {config.model_type}: {first_line(error)}"
        ) from error
    return body
