"""What clients send. Fields of OpenAI's protocol are read, refused, or known to be harmless.

The options of decoding stand beside them (``extra_body`` of the ``openai`` client).
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from qdc.jsontext import UnfitJson, parse_json
from qdc.runtime.decoding.not_offered import NOT_OFFERED, asks_nothing
from qdc.runtime.decoding.options import DecodeOptions
from qdc.serve.fields import CALLED_ELSEWHERE, FILL_CALLED_ELSEWHERE, HARMLESS
from qdc.serve.refusals import Refused, from_validation

CHOSEN = frozenset(DecodeOptions.model_fields) - {"length", "temperature", "top_p", "seed"}
"""Options of decoding that stand in a body under their own name."""

NO_SEED = -1
"""The seed of clients that have none."""

ALL_TOKENS = (0, -1)
"""Values of ``top_k`` that cut nothing: of transformers, and of vLLM."""

LEAST_MASS = 5e-324
"""Stands for a ``top_p`` of 0: the fewest tokens that hold it are the most probable one."""

LONGEST = 300
"""Characters of a message about a body, which may repeat a name from it."""

GAP = re.compile("_{3,}")
"""How a gap is written."""

Sent = TypeVar("Sent", bound="Decoding")
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Item = TypeVar("Item")
Listed = Annotated[list[Item], Field(fail_fast=True)]
"""A list of which the first wrong item is reported: errors about all take seconds to write."""


def _listed(value: Any) -> Any:
    """A list of stop strings; an empty one stops nothing."""
    listed = [value] if isinstance(value, str) else value
    return [each for each in listed if each != ""] if isinstance(listed, list) else listed


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
    content: str | Listed[Part] | None
    tool_calls: object = None
    function_call: object = None

    @model_validator(mode="after")
    def _is_text(self) -> Self:
        if self.tool_calls or self.function_call:
            raise ValueError("calls of tools are not offered, and no text says what they were")
        if self.content is None and self.role != "assistant":
            raise ValueError(
                f"content is null in a turn of the {self.role}, need text; only the "
                "assistant's may be"
            )
        return self

    def plain(self) -> dict[str, str]:
        """As chat templates read it."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class Decoding(BaseModel):
    """What all requests to a model share: how it decodes."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)

    called_elsewhere: ClassVar[Mapping[str, str]] = CALLED_ELSEWHERE

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    def options(self, length: int) -> DecodeOptions:
        """How to decode ``length`` tokens.

        Raises ``Refused`` for a field that is unknown or not offered, or a value that does not fit.
        """
        given = {
            "temperature": self.temperature,
            "top_p": LEAST_MASS if self.top_p == 0 else self.top_p,
            "seed": None if self.seed == NO_SEED else self.seed,
        }
        for name, value in (self.model_extra or {}).items():
            if name == "top_k" and type(value) is int and value in ALL_TOKENS:
                continue
            if name in CHOSEN:
                given[name] = value
            elif name in NOT_OFFERED:
                _require_neutral(name, value)
            elif name not in HARMLESS:
                known = {*type(self).model_fields, *CHOSEN}
                raise _unknown(name[:64], known, self.called_elsewhere)
        fields = {name: value for name, value in given.items() if value is not None}
        try:
            return DecodeOptions.model_validate({**fields, "length": length}, strict=True)
        except ValidationError as error:
            raise from_validation(error) from error


class Body(Decoding):
    """What all requests for an answer share."""

    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
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
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _adds_none(self) -> Self:
        if self.add_special_tokens:
            raise ValueError("add_special_tokens: the chat template writes its own special tokens")
        return self


class CompletionRequest(Request):
    """``POST /v1/completions``. One prompt, as text or as tokens."""

    prompt: str | Listed[int] | Listed[str] | Listed[Listed[int]]
    special: bool | None = None
    """Whether special tokens that are written in the prompt are meant; as text they are text."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer's own stand in front of the prompt; as the server was started if not
    given."""

    def refuse_for_numbers(self) -> None:
        """Refuse what is about text in a request with tokens. Raises ``Refused``."""
        for name in ("special", "add_special_tokens"):
            if getattr(self, name):
                raise Refused(
                    400,
                    f"{name} is about prompts of text, and the prompt is given as tokens",
                    param=name,
                    code="unsupported",
                )

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


class FillRequest(Decoding):
    """``POST /fill``: a text with gaps, of which every step is shown."""

    called_elsewhere: ClassVar[Mapping[str, str]] = FILL_CALLED_ELSEWHERE

    text: str | Listed[str]
    """Three underscores or more are a gap; of pieces, one stands between each two."""
    gap_tokens: int = Field(default=1, ge=1)
    """Tokens of each gap."""

    @property
    def pieces(self) -> list[str]:
        """The text around the gaps, in order."""
        return GAP.split(self.text) if isinstance(self.text, str) else self.text


def read_body(kind: type[Sent], data: bytes) -> Sent:
    """Parse a request, as artifacts are parsed: no name of an object may have two values.

    Raises ``Refused`` for what is no JSON, holds too much, or is not of its form.
    """
    try:
        parse_json(data)
        return kind.model_validate_json(data)
    except UnfitJson as error:
        raise Refused(400, f"the body {error}"[:LONGEST], code="invalid_request") from error
    except ValidationError as error:
        raise from_validation(error) from error
    except ValueError as error:
        raise Refused(
            400, f"the body is no JSON: {error}"[:LONGEST], code="invalid_request"
        ) from error


def _require_neutral(name: str, value: Any) -> None:
    if not asks_nothing(name, value):
        raise Refused(
            400,
            f"{name} is not offered: {NOT_OFFERED[name].why}; leave it out",
            param=name,
            code="unsupported",
        )


def _unknown(name: str, known: set[str], elsewhere: Mapping[str, str]) -> Refused:
    """Refuse a field; only a slip of the pen is told another name, for others mean other things."""
    close = get_close_matches(name, sorted(known), n=1, cutoff=0.85)
    told = f"did you mean {close[0]}?" if close else "leave it out; nothing here acts on it"
    if name in elsewhere:
        told = f"here it is called {elsewhere[name]}"
    return Refused(400, f"unknown field {name!r}; {told}", param=name, code="unknown_field")
