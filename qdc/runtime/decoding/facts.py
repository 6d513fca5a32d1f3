"""What decoding has to know of a model and its tokenizer."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from pydantic import Field

from qdc.errors import UnsupportedModel
from qdc.ir.facts import ModelFacts
from qdc.ir.types import Frozen


class DecodeFacts(Frozen):
    """Token ids, lengths, and which position predicts which."""

    mask_token_id: int | None = Field(default=None, ge=0)
    """The mask token, which is never written; None for a model that fills a canvas of noise."""
    vocabulary: int = Field(gt=0)
    """Tokens that the model has embeddings for."""
    eos: int | None = Field(default=None, ge=0)
    """End of sequence; fills what stands behind an end."""
    ends: tuple[int, ...] = ()
    """Tokens that end an answer: the end of sequence, and the end of a turn."""
    max_length: int = Field(gt=0)
    """Most tokens of a prompt and its answer."""
    logits_shift: int = Field(default=0, ge=0, le=1)
    """1 if position i of the logits predicts token i + 1."""
    attention_block: int | None = Field(default=None, gt=0)
    """Tokens of an attention block of a block-causal model."""
    canvas: int | None = Field(default=None, gt=0)
    """Tokens of a canvas, of a model that takes noise out of the end of a text."""
    usual: dict[str, Any] = Field(default_factory=dict)
    """Options of the sampler that the model is published with, ``strategy`` among them; empty where
    they are those of ``DecodeOptions``."""

    @property
    def mask(self) -> int:
        """The mask token. Raises ``UnsupportedModel`` for a model that has none."""
        if self.mask_token_id is None:
            raise UnsupportedModel(
                "the model has no mask token: it takes noise out of a canvas, and fills no gaps",
                help="write an answer behind a prompt: qdc generate, chat, serve",
            )
        return self.mask_token_id

    def computed(self, length: int) -> int:
        """Tokens that an answer of ``length`` tokens is written in: whole canvases."""
        return length if self.canvas is None else -(-length // self.canvas) * self.canvas

    def longest(self, room: int) -> int:
        """The longest answer that is written in ``room`` tokens; 0 where none is."""
        return max(0, room if self.canvas is None else room // self.canvas * self.canvas)

    @classmethod
    def of(
        cls,
        facts: ModelFacts,
        eos: int | None = None,
        ends: tuple[int, ...] = (),
        usual: Mapping[str, object] = MappingProxyType({}),
    ) -> Self:
        """Join what a model and its family say with the ends that its tokenizer has."""
        first = () if eos is None else (eos,)
        return cls(
            mask_token_id=facts.mask_token_id if facts.canvas else facts.mask,
            vocabulary=facts.vocabulary,
            eos=eos,
            ends=tuple(dict.fromkeys((*first, *ends))),
            max_length=facts.max_length,
            logits_shift=facts.logits_shift,
            attention_block=facts.attention_block,
            canvas=facts.canvas,
            usual=dict(usual),
        )
