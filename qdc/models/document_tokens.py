"""Whether a text stands between special tokens, as a user asks for it and an artifact notes it."""

from typing import Literal

DocumentTokens = Literal["auto", "add", "none"]
"""``add`` is what the tokenizer's post-processor does, ``auto`` what published code does."""
