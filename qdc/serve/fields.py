"""Fields of requests that concern other servers than this one."""

from collections.abc import Mapping

HARMLESS = frozenset(
    ("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
     "safety_identifier", "service_tier", "store", "user")
)  # fmt: skip
"""Fields that concern OpenAI's own service, and no answer."""


CALLED_ELSEWHERE: Mapping[str, str] = {
    "length": "max_tokens",
    "max_length": "max_tokens",
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "random_seed": "seed",
    "stop_sequences": "stop",
    "stop_strings": "stop",
}
"""Names that other servers give to fields of this one."""

FILL_CALLED_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "length", "n_predict"), "gap_tokens"),
    "prompt": "text",
    "random_seed": "seed",
}
"""The same for texts with gaps."""
