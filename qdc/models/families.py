"""The model families that have an implementation of our own, chosen by ``architectures``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from qdc.errors import UnsupportedModel
from qdc.ir.facts import ModelFacts
from qdc.models.diffusion_gemma import DIFFUSION_GEMMA
from qdc.models.dream import DREAM
from qdc.models.family import Family, Refusal
from qdc.models.fast_dllm import FAST_DLLM
from qdc.models.llada import LLADA
from qdc.models.llada2 import LLADA2
from qdc.models.mixture import LLADA_MOE, SDAR_MOE
from qdc.models.other_fields import unused
from qdc.models.sdar import SDAR
from qdc.models.stable_diffcoder import STABLE_DIFFCODER

FAMILIES: tuple[Family, ...] = (
    LLADA,
    DREAM,
    SDAR,
    FAST_DLLM,
    LLADA_MOE,
    SDAR_MOE,
    LLADA2,
    STABLE_DIFFCODER,
    DIFFUSION_GEMMA,
)

REFUSED: tuple[Refusal, ...] = (
    Refusal(
        "nemotron-labs-diffusion",
        ("NemotronLabsDiffusionModel", "NemotronDiffusionModel", "NemotronDiffusionVLMModel"),
        "its finished blocks are read causally and the block in work both ways, by one set of "
        "weights, which no attention here does; YaRN frequencies and queries that are scaled by "
        "position (llama-4) are missing too",
        "run it in its published precision (SGLang, transformers with its own code)",
    ),
    Refusal(
        "dream-reasoner",
        ("DreamForCausalLM",),
        "its block-diffusion attention could not be compared with published code",
        "compile Dream-v0 or Dream-Coder (DreamModel)",
    ),
)
"""Known families that would compile to something wrong."""


@dataclass(frozen=True)
class Families:
    """The families that a command or a call knows, in order; a registry makes it."""

    members: tuple[Family, ...] = FAMILIES
    refused: tuple[Refusal, ...] = REFUSED

    def find(self, config: Mapping[str, Any]) -> Family | None:
        """Return the family that claims a configuration's ``architectures``, or None."""
        names = _architectures(config)
        return next((each for each in self.members if names & set(each.architectures)), None)

    def refusal(self, config: Mapping[str, Any]) -> Refusal | None:
        """Return why a known family is refused, or None if it is supported or not known."""
        names = _architectures(config)
        refused = (each for each in self.refused if names & set(each.architectures))
        return None if self.find(config) is not None else next(refused, None)

    def unused(self, config: Mapping[str, Any]) -> str:
        """Say which fields of a configuration its family does not know; empty if there are none."""
        family = self.find(config)
        return "" if family is None else unused(family.unused(config), family.name)

    def assumed(self, config: Mapping[str, Any]) -> str:
        """Say what a family takes where its configuration is silent; empty if it is not."""
        family = self.find(config)
        found = {} if family is None else family.assumed(config)
        if family is None or not found:
            return ""
        named = ", ".join(f"{field} {value}" for field, value in found.items())
        return f"{named}: config.json does not say, and {family.name} is published so"

    def supported(self) -> str:
        """The architectures that are claimed, for an error's help."""
        return ", ".join(name for family in self.members for name in family.architectures)

    def build(self, config: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
        """Build the model of a configuration on the meta device, without weights.

        Raises:
            UnsupportedModel: no family claims its ``architectures``, or a field has a value that
                the family's implementation does not cover.
        """
        family, refusal = self.find(config), self.refusal(config)
        if family is not None:
            return family.build(config)
        if refusal is not None:
            raise UnsupportedModel(
                f"models of the family {refusal.name} are not supported: {refusal.reason}",
                where=sorted(_architectures(config)),
                help=refusal.help,
            )
        names = ", ".join(sorted(_architectures(config))) or "a model without architectures"
        raise UnsupportedModel(
            f"no model family here implements {names}",
            help=f"supported architectures: {self.supported()}, and those of a plugin (--plugin "
            "FILE); code beside a checkpoint is never run",
        )


BUILT_IN = Families()
"""What is known where no registry is at hand."""


def _architectures(config: Mapping[str, Any]) -> set[str]:
    claimed = config.get("architectures")
    return (
        {name for name in claimed if isinstance(name, str)} if isinstance(claimed, list) else set()
    )
