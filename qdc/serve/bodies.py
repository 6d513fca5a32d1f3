"""What clients send. Fields of OpenAI's protocol are read, refused, or known to be harmless.

The options of decoding stand beside them (``extra_body`` of the ``openai`` client).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from qdc.errors import nearest
from qdc.runtime.decoding.options import DecodeOptions
from qdc.serve.refusals import Refused, from_validation

HARMLESS = frozenset(
    ("metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
     "safety_identifier", "service_tier", "store", "user")
)  # fmt: skip
"""Fields that concern OpenAI's own service, and no answer."""

NEUTRAL: Mapping[str, tuple[JsonValue, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0, 0.0),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields whose effect is not offered, with the values that ask for none."""

CHOSEN = frozenset(DecodeOptions.model_fields) - {"length", "temperature", "top_p", "seed"}
"""Options of decoding that stand in a body under their own name."""

Sent = TypeVar("Sent", bound="Body")
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Item = TypeVar("Item")
Listed = Annotated[list[Item], Field(fail_fast=True)]
"""A list of which the first wrong item is reported: errors about all take seconds to write."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(_Strict):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Part(_Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Listed[Part]

    def plain(self) -> dict[str, str]:
        """As chat templates read it."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class Body(BaseModel):
    """What all requests for an answer share."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)

    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Annotated[list[Stop], Field(max_length=4), BeforeValidator(_listed)] | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ, give one of them")
        return self

    @property
    def length(self) -> int | None:
        """Tokens that the answer may have."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings in front of which the answer ends."""
        return tuple(self.stop or ())

    def options(self, length: int) -> DecodeOptions:
        """How to decode an answer of ``length`` tokens.

        Raises ``Refused`` for a field that is unknown or not offered, or a value that does not fit.
        """
        given = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        for name, value in (self.model_extra or {}).items():
            if name in CHOSEN:
                given[name] = value
            elif name in NEUTRAL:
                _require_neutral(name, value)
            elif name not in HARMLESS:
                known = {*type(self).model_fields, *CHOSEN, *NEUTRAL, *HARMLESS}
                raise Refused(
                    400,
                    f"unknown field {name[:64]!r}; {nearest(name[:64], known)}",
                    param=name[:64],
                    code="unknown_field",
                )
        fields = {name: value for name, value in given.items() if value is not None}
        try:
            return DecodeOptions.model_validate({**fields, "length": length}, strict=True)
        except ValidationError as error:
            raise from_validation(error) from error


class Request(Body):
    """An OpenAI request, which names a model and may stream."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Request):
    """``POST /v1/chat/completions``."""

    messages: Listed[Message] = Field(min_length=1)


class CompletionRequest(Request):
    """``POST /v1/completions``. One prompt, as text or as tokens."""

    prompt: str | Listed[int] | Listed[str] | Listed[Listed[int]]

    @property
    def one_prompt(self) -> str | list[int]:
        """The prompt. Raises ``Refused`` for several."""
        given = self.prompt
        if isinstance(given, str):
            return given
        if len(given) == 1 and not isinstance(given[0], int):
            return given[0]
        tokens = [token for token in given if isinstance(token, int)]
        if not tokens or len(tokens) < len(given):
            raise Refused(
                400,
                "give one prompt a request; requests of equal shape are decoded together",
                param="prompt",
                code="unsupported",
            )
        return tokens


class WatchRequest(Body):
    """``POST /generate``: a prompt or a conversation, of which every step is shown."""

    prompt: str | None = None
    messages: Annotated[Listed[Message], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


def read_body(kind: type[Sent], data: bytes) -> Sent:
    """Parse a request. Raises ``Refused`` for what is no JSON, or not of its form."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise from_validation(error) from error


def _require_neutral(name: str, value: Any) -> None:
    accepted = NEUTRAL[name]
    if value is None or any(type(value) is type(known) and value == known for known in accepted):
        return
    raise Refused(
        400,
        f"{name} is not offered; leave it out",
        param=name,
        code="unsupported",
    )
