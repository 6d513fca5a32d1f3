"""Parameters of generation that the decoding loop does not offer, and the values that ask for none.

Clients, and tasks of evaluations, send all parameters that they know, most of them with values that
change nothing: those of OpenAI and transformers, and those that vLLM, SGLang and llama.cpp have
added. Such values are taken; every other one is refused with the reason.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import JsonValue


class NotOffered(NamedTuple):
    """A field without effect here."""

    neutral: tuple[JsonValue, ...]
    """Values, beside null, that ask for nothing."""
    why: str
    """What is lacking, or what to ask for instead."""


def _entries() -> Iterator[tuple[str, NotOffered]]:
    """All fields, in groups of one reason."""
    groups: Mapping[str, Mapping[str, tuple[JsonValue, ...]]] = {
        "an answer is one text": {
            "n": (1,), "best_of": (1,), "num_beams": (1,), "use_beam_search": (False,),
            "length_penalty": (1,), "early_stopping": (False,), "num_return_sequences": (1,),
            "num_beam_groups": (1,), "diversity_penalty": (0,),
        },
        "no probabilities are sent": {
            "logprobs": (False,), "top_logprobs": (0,), "prompt_logprobs": (),
        },
        "the decoding loop changes no probability by what was written before": {
            "frequency_penalty": (0,), "presence_penalty": (0,), "repetition_penalty": (1,),
            "no_repeat_ngram_size": (0,),
        },
        "of the tails only top_p and top_k are cut": {
            "min_p": (0,), "top_a": (0,), "typical_p": (1,), "tfs_z": (1,), "mirostat": (0,),
            "epsilon_cutoff": (0,), "eta_cutoff": (0,),
        },
        "no token is favoured, forbidden or demanded but the end, by forbid_eos": {
            "logit_bias": ({},), "bad_words": ([],), "allowed_token_ids": (),
            "min_tokens": (0,), "min_new_tokens": (0,), "min_length": (0,), "ignore_eos": (False,),
        },
        "answers end at the model's own ends and the strings of stop": {
            "stop_token_ids": ([],), "include_stop_str_in_output": (False,),
        },
        "an answer is text without its special tokens": {
            "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,),
            "return_token_ids": (False,), "audio": (), "modalities": (["text"],),
        },
        "the answer alone is sent, and stands behind the prompt": {
            "echo": (False,), "suffix": ("",), "prediction": (),
        },
        "the form of an answer cannot be constrained": {
            "response_format": ({"type": "text"},), "guided_json": (), "guided_regex": (),
            "guided_choice": (), "guided_grammar": (), "structured_outputs": (), "grammar": ("",),
            "json_schema": (),
        },
        "the model calls nothing": {
            "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
            "function_call": ("none", "auto"), "web_search_options": (), "documents": ([],),
        },
        "the chat template is the tokenizer's, and opens a new answer": {
            "chat_template": (), "chat_template_kwargs": ({},), "add_generation_prompt": (True,),
            "continue_final_message": (False,),
        },
        "prompts are never cut; what is too long is refused": {
            "truncate_prompt_tokens": (),
        },
        "how long the model thinks and talks is its own": {
            "reasoning_effort": ("none",), "verbosity": ("medium",),
        },
        "requests are answered in the order in which they came": {
            "priority": (0,),
        },
    }  # fmt: skip
    for why, fields in groups.items():
        for name, neutral in fields.items():
            yield name, NotOffered(neutral, why)


NOT_OFFERED: Mapping[str, NotOffered] = dict(_entries())


def asks_nothing(name: str, value: Any) -> bool:
    """Whether a value of a field of ``NOT_OFFERED`` changes no answer."""
    return value is None or any(_same(value, known) for known in NOT_OFFERED[name].neutral)


def _same(value: Any, known: JsonValue) -> bool:
    """Whether two values are equal; 1 and 1.0 are, true is neither."""
    if isinstance(value, bool) or isinstance(known, bool):
        return value is known
    if isinstance(value, int | float) and isinstance(known, int | float):
        return value == known
    return type(value) is type(known) and bool(value == known)
