"""Who runs a model whose linears are packed integers: docs/engines.md says it at length."""

from collections.abc import Mapping
from typing import Any

SERVED: Mapping[str, str] = {
    "SDARForCausalLM": "SGLang",
    "SDARMoeForCausalLM": "SGLang",
    "LLaDA2MoeModelLM": "SGLang",
}
"""Engine that knows a class as a denoiser and hands it the configuration of its linears."""
OF_NONE = (
    "LLaDAModelLM",
    "DreamModel",
    "LLaDAMoEModelLM",
    "Fast_dLLM_QwenForCausalLM",
    "StableDiffcoderForCausalLM",
)
"""Denoisers that no engine serves; their own code has no place for packed integers either."""


def served_by(config: Mapping[str, Any]) -> str:
    """Say in words who loads an export, by the ``architectures`` of its configuration."""
    names = config.get("architectures")
    known = [str(name) for name in names] if isinstance(names, list) else []
    for name in known:
        if name in SERVED:
            return f"{SERVED[name]} serves {name}"
        if name in OF_NONE:
            return f"no engine serves {name}: the export is for tools that read the format"
    return "transformers loads it; vLLM and SGLang run decoders, looking back only"
