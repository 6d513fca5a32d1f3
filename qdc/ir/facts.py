"""What a model says of itself beyond its layers."""

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from qdc.errors import UnsupportedModel
from qdc.ir.types import Frozen


class ModelFacts(Frozen):
    """What a masked-diffusion model says of itself beyond its layers."""

    family: str
    mask_token_id: int | None = Field(ge=0)
    """None for a model that was not trained to fill masked places."""
    vocabulary: int = Field(gt=0)
    max_length: int = Field(gt=0)
    logits_shift: int = Field(default=0, ge=0, le=1)
    """1 if position i of the logits predicts token i + 1."""
    attention_block: int | None = Field(default=None, gt=0)
    """Tokens of a block, if a position sees just its own block and those before it; 1 if causal."""
    canvas: int | None = Field(default=None, gt=0)
    """Tokens of a canvas, of a model that takes noise out of the end of a text: the last so many
    tokens see each other and what is before them, which is causal. None for every other model."""

    logit_cap: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """What logits are bent to stay within, behind the head: c tanh(x / c). None for most models."""

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A model without canvas or cap is written as it was before there were any."""
        found: dict[str, Any] = write(self)
        for name in ("canvas", "logit_cap"):
            if getattr(self, name) is None:
                found.pop(name, None)
        return found

    @property
    def mask(self) -> int:
        """The mask token. Raises ``UnsupportedModel`` for a model that has none."""
        if self.renoises:
            raise UnsupportedModel(
                "the model has no mask token: it takes random tokens out of a canvas, and fills no "
                "gaps",
                help="qdc generate, chat and serve write answers with it; qdc eval --text measures "
                "its loss at tokens that were drawn anew",
            )
        if self.mask_token_id is None:
            raise UnsupportedModel(
                "the model has no mask token: it fills no masked places, and nothing decodes it",
                help="qdc run, generate, serve, inspect-calibration and tasks are for masked "
                "diffusion models; qdc eval --text measures the next-token loss of a causal one",
            )
        return self.mask_token_id

    @property
    def denoises_blocks(self) -> bool:
        """Whether masked places are filled block by block: each sees its block and those before."""
        return self.mask_token_id is not None and (self.attention_block or 0) > 1

    @property
    def renoises(self) -> bool:
        """Whether it was trained to take random tokens out of a canvas, and not masks."""
        return self.canvas is not None

    @property
    def causal(self) -> bool:
        """Whether every position sees just itself and those before it."""
        return self.attention_block == 1
