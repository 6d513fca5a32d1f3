"""A model as tasks see it: its logits, its facts and its tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from qdc.errors import QdcError
from qdc.evaluation.harness.passages import Encode
from qdc.ir.facts import ModelFacts
from qdc.models.predictions import Logits
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.strategies import BUILT_IN, Strategies
from qdc.text.surround import Surround
from qdc.text.tokenizer import FAILURES, Encoder, encode_marked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


ALONE = Surround()
"""Nothing stands around a text."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    logits: Logits
    module: nn.Module
    facts: ModelFacts
    tokenizer: "PreTrainedTokenizerFast"
    decoding: DecodeFacts
    """What the decoding loop has to know."""
    decode: Callable[[list[int]], str]
    chat: bool = False
    """Whether prompts are in the chat template, whose special tokens then count as such."""
    strategies: Strategies = field(default_factory=lambda: BUILT_IN)
    """Of decoding, by name."""
    surround: Surround = ALONE
    """What stands around a text, of which only what is in front counts: answers are not closed."""

    @property
    def encode(self) -> Encode:
        """Tokens of a piece of text; a special token that is written in a document is text."""
        if self.chat:
            return lambda text: encode_marked(self.tokenizer, text)
        return Encoder(self.tokenizer, "none")

    @property
    def before(self) -> tuple[int, ...]:
        """What stands in front of a context; a chat template writes it itself."""
        return () if self.chat else self.surround.before

    @property
    def end(self) -> int | None:
        """The end of sequence, if the tokenizer has one."""
        return self.decoding.eos

    def required_end(self, why: str) -> int:
        """The end of sequence. Raises ``QdcError`` if there is none."""
        if self.end is None:
            raise QdcError(
                f"the tokenizer has no end of sequence, and {why}",
                help="name eos_token in tokenizer_config.json",
            )
        return self.end

    def render(self, messages: list[dict[str, str]], opens_answer: bool) -> str:
        """A dialogue in the chat template. Raises ``QdcError`` where it has none or refuses."""
        from jinja2 import TemplateError

        if self.tokenizer.chat_template is None:
            raise QdcError(
                "the tokenizer has no chat template",
                help="leave out --chat, or copy chat_template.jinja from the model",
            )
        options: dict[str, Any] = {"add_generation_prompt": opens_answer}
        if not opens_answer:
            options = {"continue_final_message": True}
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options))
        except (TemplateError, *FAILURES) as error:
            raise QdcError(
                f"the chat template refuses a dialogue of {len(messages)} turns: {error}",
                help="leave out --chat",
            ) from error
