"""Answers in the shapes of OpenAI's protocol."""

import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from qdc.serve.ticket import Finish, Outcome


@dataclass(frozen=True)
class Reply:
    """What all messages about one answer share."""

    kind: Literal["chat", "text"]
    model: str
    prompt_tokens: int
    include_usage: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(self, text: str, outcome: Outcome) -> dict[str, Any]:
        """The answer in one piece."""
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self.kind == "chat"
            else {"text": text}
        )
        found = self._message("", said, outcome.finish)
        return {**found, "usage": self.usage(outcome)}

    def opening(self) -> dict[str, Any] | None:
        """The first message of a stream: who speaks, where that is said."""
        if self.kind == "text":
            return None
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, None)

    def delta(self, text: str) -> dict[str, Any]:
        """More text of a stream."""
        said: dict[str, Any] = (
            {"delta": {"content": text}} if self.kind == "chat" else {"text": text}
        )
        return self._chunk(said, None)

    def closing(self, outcome: Outcome) -> list[dict[str, Any]]:
        """The last messages of a stream."""
        said: dict[str, Any] = {"delta": {}} if self.kind == "chat" else {"text": ""}
        found = [self._chunk(said, outcome.finish)]
        if self.include_usage:
            last = self._message(".chunk", {}, None)
            found.append({**last, "choices": [], "usage": self.usage(outcome)})
        return found

    def usage(self, outcome: Outcome) -> dict[str, int]:
        """Tokens of the prompt and of the answer."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "total_tokens": self.prompt_tokens + outcome.completion_tokens,
        }

    def _chunk(self, said: dict[str, Any], finish: Finish | None) -> dict[str, Any]:
        found = self._message(".chunk", said, finish)
        return {**found, "usage": None} if self.include_usage else found

    def _message(self, chunk: str, said: dict[str, Any], finish: Finish | None) -> dict[str, Any]:
        chat = self.kind == "chat"
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.number}",
            "object": f"chat.completion{chunk}" if chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": finish}],
        }
