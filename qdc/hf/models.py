"""Classes of transformers for the families that qdc implements and transformers does not.

A class is named as ``architectures`` of the published configurations names it, and has the
published tensor names; what computes is qdc's own implementation. ``model_type`` is not unique
(LLaDA and LLaDA-MoE share one), so one configuration class may stand for several models.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qdc.errors import QdcError
from qdc.hf.conversions import read_in_parts
from qdc.hf.generation import run_loop
from qdc.ir.facts import ModelFacts
from qdc.models.decoder import DecoderBlock, predict
from qdc.models.families import Families
from qdc.models.family import Family
from qdc.models.masks import read_mask

AUTO_CLASSES = (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM)


class OwnModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A model of qdc's own as transformers wants it."""

    family: ClassVar[Family]
    reads_fused: ClassVar[bool] = True
    """Whether transformers can split what checkpoints of the family hold as one tensor."""
    base_model_prefix = ""
    _supports_sdpa = True
    logits_shift: int
    """1 if position i of the logits predicts token i + 1."""
    facts: ModelFacts

    def __init__(self, config: PretrainedConfig) -> None:
        """Build from the configuration.

        Raises:
            UnsupportedModel: qdc does not implement a variant that it asks for.
            QdcError: transformers cannot read its checkpoints.
        """
        if not self.reads_fused and getattr(config, "quantization_config", None) is None:
            raise QdcError(
                f"this version of transformers cannot split the fused tensors of {self.family.name}"
                " and would leave them random",
                help="install transformers 5.24 or newer, or load it with qdc.load_original",
            )
        super().__init__(config)
        network, facts = self.family.build(config.to_dict())
        self.logits_shift = facts.logits_shift
        self.facts = facts
        self._tied_weights_keys = _ties(network)
        self._no_split_modules = {DecoderBlock.__name__}
        for name, child in network.named_children():
            self.add_module(name, child)
        if torch.get_default_device().type != "meta":
            self.to_empty(device=torch.get_default_device())
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | str | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> MaskedLMOutput | tuple[Tensor]:
        """``i64[batch, T]``, mask ``[batch, T]`` (0 = padding); ``logits`` is [batch, T, vocab].

        Further masks are those of ``qdc.models.masks.read_mask``.

        Raises:
            TypeError: an argument is given that would change the result, as labels or a cache do.
            QdcError: the text is longer than the model takes, or the mask says something else.
        """
        if token_type_ids is not None and bool(token_type_ids.any()):
            unused["token_type_ids"] = token_type_ids  # tokenizers give zeros, which mean nothing
        given = [n for n, value in unused.items() if value is not None and value is not False]
        if given:
            raise TypeError(f"{type(self).__name__} does not take {', '.join(given)}")
        if input_ids.shape[1] > self.facts.max_length:
            raise QdcError(
                f"a text of {input_ids.shape[1]} tokens, and the model takes "
                f"{self.facts.max_length}",
                help="cut the text; tokenizers do with truncation=True, max_length=N",
            )
        mask = read_mask(attention_mask, input_ids, self.facts.attention_block)
        logits = predict(self, self.family.names, input_ids, mask)
        return MaskedLMOutput(logits=logits) if return_dict is not False else (logits,)

    @classmethod
    def can_generate(cls) -> bool:
        """It can, by the decoding loop of qdc."""
        return True

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Write an answer behind each row of ``i64[batch, T]``, by the decoding loop of qdc.

        Of transformers it takes ``max_new_tokens``, ``max_length``, ``do_sample``,
        ``temperature``, ``top_p``, ``top_k``, ``eos_token_id`` and ``pad_token_id``, beside them
        the options of ``qdc generate``.

        Returns:
            ``i64[batch, T + longest answer]``, see ``run_loop``.

        Raises:
            QdcError: a parameter is unknown or not offered, or prompt and answer do not fit.
        """
        if inputs is not None and input_ids is not None:
            raise QdcError("generate was given inputs and input_ids", help="give one of them")
        ids = inputs if input_ids is None else input_ids
        usual = self.family.decoding
        return run_loop(self, self.facts, usual, ids, attention_mask, generation_config, options)

    def get_input_embeddings(self) -> torch.nn.Module:
        """The embedding of the tokens."""
        return next(m for m in self.modules() if isinstance(m, torch.nn.Embedding))


def register_models(families: Families) -> None:
    """Register a configuration and its classes for each family that has a ``model_type``.

    Families may share one.

    Raises:
        QdcError: transformers implements the ``model_type`` itself.
    """
    for kind in dict.fromkeys(each.model_type for each in families.members if each.model_type):
        config = CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else _new_config(kind)
        if config.__module__ != __name__:
            raise QdcError(
                f"transformers has models of the type {kind!r} itself",
                where=[each.name for each in families.members if each.model_type == kind],
                help="give the family another model_type, or none",
            )
        there: Any = AutoModel._model_mapping.get(config, ())
        classes: dict[str, type[OwnModel]] = {found.__name__: found for found in there}
        for family in (each for each in families.members if each.model_type == kind):
            for name in family.architectures:
                if name not in classes or classes[name].family is not family:
                    classes[name] = _model_class(name, family, config)
                    classes[name].reads_fused = read_in_parts(name, family.names)
        for auto in AUTO_CLASSES:
            mapping: Any = auto._model_mapping
            mapping.register(config, tuple(classes.values()), exist_ok=True)


def _new_config(kind: str) -> type[PretrainedConfig]:
    label = kind.replace("_", "").capitalize()
    fields = {"model_type": kind, "__module__": __name__}
    config = type(f"{label}QdcConfig", (PretrainedConfig,), fields)
    AutoConfig.register(kind, config)
    return config


def _model_class(name: str, family: Family, config: type[PretrainedConfig]) -> type[OwnModel]:
    fields = {"config_class": config, "family": family, "__module__": __name__}
    return type(name, (OwnModel,), fields)


def _ties(network: torch.nn.Module) -> dict[str, str]:
    """Further names of parameters that have two, each with the first name."""
    first = {parameter: name for name, parameter in network.named_parameters()}
    every = network.named_parameters(remove_duplicate=False)
    return {name: first[parameter] for name, parameter in every if first[parameter] != name}
