"""Classes of transformers for the families that qdc implements and transformers does not.

A class is named as ``architectures`` of the published configurations names it, and has the
published tensor names; what computes is qdc's own implementation. ``model_type`` is not unique
(LLaDA and LLaDA-MoE share one), so one configuration class may stand for several models.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import MaskedLMOutput

from qdc.models.families import FAMILIES, build

MODEL_TYPES = {
    "LLaDAModelLM": "llada",
    "LLaDAMoEModelLM": "llada",
    "DreamModel": "Dream",
    "SDARForCausalLM": "sdar",
    "SDARMoeForCausalLM": "sdar_moe",
    "Fast_dLLM_QwenForCausalLM": "Fast_dLLM_Qwen",
}
"""``model_type`` of the published configurations, by architecture."""
AUTO_CLASSES = (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM)


class OwnModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A model of qdc's own as transformers wants it."""

    base_model_prefix = ""
    _supports_sdpa = True
    logits_shift: int
    """1 if position i of the logits predicts token i + 1."""

    def __init__(self, config: PretrainedConfig) -> None:
        """Build from the configuration.

        Raises:
            UnsupportedModel: qdc does not implement a variant that it asks for.
        """
        super().__init__(config)
        fields = {**config.to_dict(), "architectures": [type(self).__name__]}
        network, facts = build(fields)
        self.logits_shift = facts.logits_shift
        self._tied_weights_keys = _ties(network)
        self._no_split_modules = {"LLaDABlock", "DecoderBlock"}
        self._compute = type(network).forward  # reads nothing but the children, which come over
        for name, child in network.named_children():
            self.add_module(name, child)
        if torch.get_default_device().type != "meta":
            self.to_empty(device=torch.get_default_device())
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> MaskedLMOutput | tuple[Tensor]:
        """``i64[batch, T]``, mask ``[batch, T]`` (0 = padding); ``logits`` is [batch, T, vocab].

        Raises:
            TypeError: an argument is given that would change the result, as labels or a cache do.
        """
        if token_type_ids is not None and bool(token_type_ids.any()):
            unused["token_type_ids"] = token_type_ids  # tokenizers give zeros, which mean nothing
        given = [n for n, value in unused.items() if value is not None and value is not False]
        if given:
            raise TypeError(f"{type(self).__name__} does not take {', '.join(given)}")
        logits = self._compute(self, input_ids, attention_mask)
        return MaskedLMOutput(logits=logits) if return_dict is not False else (logits,)

    def get_input_embeddings(self) -> torch.nn.Module:
        """The embedding of the tokens."""
        return next(m for m in self.modules() if isinstance(m, torch.nn.Embedding))


def register_models() -> None:
    """Register a configuration and its classes for each family."""
    names = [name for family in FAMILIES for name in family.architectures]
    for kind in dict.fromkeys(MODEL_TYPES[name] for name in names):
        label = kind.replace("_", "").capitalize()
        config = type(f"{label}QdcConfig", (PretrainedConfig,), {"model_type": kind})
        AutoConfig.register(kind, config)
        classes: Any = tuple(_model_class(n, config) for n in names if MODEL_TYPES[n] == kind)
        for auto in AUTO_CLASSES:
            auto._model_mapping.register(config, classes)


def _model_class(name: str, config: type[PretrainedConfig]) -> type[OwnModel]:
    return type(name, (OwnModel,), {"config_class": config, "__module__": __name__})


def _ties(network: torch.nn.Module) -> dict[str, str]:
    """Further names of parameters that have two, each with the first name."""
    first = {parameter: name for name, parameter in network.named_parameters()}
    every = network.named_parameters(remove_duplicate=False)
    return {name: first[parameter] for name, parameter in every if first[parameter] != name}
