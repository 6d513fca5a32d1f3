"""What a tokenizer says of answers: how they end, and how a conversation is written."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qdc.errors import QdcError
from qdc.ir.facts import ModelFacts
from qdc.models.family import Family
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.generation_fields import named_ends, with_published_options
from qdc.text.tokenizer import FAILURES, encode_marked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|role_end|>", "<turn|>")
"""How the published families write the end of a turn: LLaDA; Dream, SDAR; LLaDA-MoE; Gemma 4."""


def decode_facts(
    facts: ModelFacts,
    tokenizer: "PreTrainedTokenizerFast",
    config: Mapping[str, Any],
    family: Family | None = None,
    generation: Mapping[str, Any] = MappingProxyType({}),
) -> DecodeFacts:
    """Join what the model, its tokenizer, its ``config.json`` and its family say.

    The end of sequence is the tokenizer's, else the configuration's, else that of
    ``generation_config.json``, ``generation``, else the family's; all that are named are ends. Ends
    that the model has no embedding for are left out.

    Raises ``QdcError`` where ``generation`` asks for a sampler that is not implemented.
    """
    named = config.get("eos_token_id")
    text = config.get("text_config")  # of models that read more than text
    if named is None and isinstance(text, Mapping):
        named = text.get("eos_token_id")
    found = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    found += named_ends(generation)
    if family is not None and all(token is None for token in found):
        found.append(family.end_token_id)
    vocabulary = tokenizer.get_vocab()
    found += [vocabulary[text] for text in TURN_ENDS if text in vocabulary]
    ends = [
        token
        for token in found
        if type(token) is int and 0 <= token < facts.vocabulary and token != facts.mask_token_id
    ]
    usual = {} if family is None else with_published_options(family.decoding, generation)
    return DecodeFacts.of(facts, ends[0] if ends else None, tuple(ends), usual)


def chat_tokens(
    tokenizer: "PreTrainedTokenizerFast", messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """Write messages, each with ``role`` and ``content``, up to where the answer begins.

    Raises ``QdcError`` where the tokenizer has no chat template, or one that refuses the messages.
    """
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise QdcError(
            "the tokenizer has no chat template",
            help="leave --chat out and write the prompt as the model was trained on it",
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, *FAILURES) as error:
        raise QdcError(
            f"the chat template refuses {len(messages)} messages: {error}",
            help="check the roles of the messages",
        ) from error
    return encode_marked(tokenizer, str(text))
