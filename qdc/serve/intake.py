"""From the bytes of a request to a ticket in the queue."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.requests import Request as Http

from qdc.errors import InvalidPipeline, QdcError, UnknownName
from qdc.pipeline.strategybase import Strategy
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.strategies import (
    Strategies,
    check_canvas,
    make_strategy,
    needs_verifier,
)
from qdc.serve.bodies import Body, FillRequest, Message
from qdc.serve.engine import Engine
from qdc.serve.finaltext import FinalText
from qdc.serve.gaps import GappedText
from qdc.serve.guard import CLIENT
from qdc.serve.limits import Limits
from qdc.serve.refusals import Refused, from_error
from qdc.serve.ticket import AnswerTicket, FillTicket, Ticket
from qdc.serve.turns import Turns
from qdc.serve.wording import Wording

DEFAULT_LENGTH: int = DecodeOptions.model_fields["length"].default

Found = TypeVar("Found")
Read = Callable[[], Found]
"""Gives the tokens of a prompt, or of a text with gaps; called in a thread of its own."""


class Gone(Exception):
    """The client has gone away; nobody reads what would be sent."""


async def receive(request: Http, limits: Limits) -> bytes:
    """Read a body. Raises ``Refused`` for one that is too large or slow, or not said to be JSON.

    The type keeps pages of strangers from sending forms here: for JSON a browser asks first.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "send JSON, with the header Content-Type: application/json")
    large = Refused(413, f"a body may have {limits.max_body} bytes", code="body_too_large")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18 or int(length) > limits.max_body:
        raise large
    data = bytearray()
    try:
        async with asyncio.timeout(limits.patience):
            async for part in request.stream():
                data += part
                if len(data) > limits.max_body:
                    raise large
    except TimeoutError:
        raise Refused(408, "the body did not come in time", code="timeout") from None
    except ClientDisconnect:
        raise Gone from None
    return bytes(data)


@dataclass(frozen=True)
class Intake:
    """Checks prompts against the model, and queues them."""

    engine: Engine
    wording: Wording
    facts: DecodeFacts
    limits: Limits
    verifies: bool
    """An autoregressive verifier is there."""
    strategies: Strategies
    turns: Turns

    async def queue(self, request: Http, body: Body, read: Read[list[int]]) -> AnswerTicket:
        """Queue a prompt. Raises ``Refused``, and ``Gone`` if the client did not wait for that."""
        client: str = getattr(request.state, CLIENT)
        tokens = await self._read(request, client, read)
        room = self.limits.max_length - len(tokens)
        length = body.length
        if room < self.facts.computed(length or 1):
            asked = "and no answer fits" if length is None else f"and an answer of {length}"
            if self.facts.canvas is not None:
                asked += f" in canvases of {self.facts.canvas}"
            raise self._too_long(
                f"a prompt of {len(tokens)} tokens {asked}",
                "max_tokens" if length is not None else None,
            )
        if length is None:
            length = min(DEFAULT_LENGTH, self.facts.longest(room))
        options = body.options(length)
        options = options.settled(self.facts.usual)
        self._check_strategy(options)
        final = FinalText(self.wording.decode, body.stops)
        ticket = AnswerTicket(tokens, options, final, self.facts.ends, client)
        self.engine.submit(ticket)
        return ticket

    async def queue_gaps(self, request: Http, body: FillRequest) -> FillTicket:
        """Queue a text with gaps. Raises as ``queue`` does."""
        client: str = getattr(request.state, CLIENT)
        if self.facts.canvas is not None:
            raise Refused(
                400,
                "the model has no mask token: it writes answers behind a prompt, and fills no gaps",
                param="text",
                code="unsupported",
            )
        pieces, size = body.pieces, body.gap_tokens
        count = len(pieces) - 1
        if count < 1:
            raise Refused(
                400,
                "found no gap to fill; write ___ where text is missing, as in for i ___ range(10):",
                param="text",
                code="invalid_request",
            )
        if count * size > self.limits.max_length:  # before a list of them is made
            raise self._too_long(f"{count} gaps of {size} tokens", "gap_tokens")
        options = body.options(count * size).settled(self.facts.usual)
        _check_fills(options, self._check_strategy(options))

        def read() -> GappedText:
            return self.wording.gapped(pieces, size, self.facts.mask)

        text = await self._read(request, client, read)
        if len(text.tokens) > self.limits.max_length:
            raise self._too_long(f"a text of {len(text.tokens)} tokens with its gaps", "text")
        if text.tokens.count(self.facts.mask) > count * size:
            raise self._writes_mask("text", "gaps are written ___")
        ticket = FillTicket(text, options, client)
        self.engine.submit(ticket)
        return ticket

    async def _read(self, request: Http, client: str, read: Read[Found]) -> Found:
        """Have the tokenizer read in turn. Raises ``Refused``, and ``Gone`` without a client."""
        async with self.turns.turn(client):
            if await request.is_disconnected():
                raise Gone
            try:
                return await asyncio.to_thread(read)  # a long text keeps nobody else waiting
            except QdcError as error:
                raise from_error(error) from error

    def _too_long(self, what: str, param: str | None) -> Refused:
        return Refused(
            400,
            f"{what}: the server takes {self.limits.max_length} in all",
            code="context_length_exceeded",
            param=param,
        )

    def _writes_mask(self, param: str, why: str) -> Refused:
        text = f"the {param} writes the mask token, and {why}"
        return Refused(400, text, param=param, code="unsupported")

    def _check_strategy(self, options: DecodeOptions) -> type[Strategy]:
        """The strategy that is meant.

        Raises ``Refused`` for an unknown one, and for options that it does not read.
        """
        try:
            strategy = make_strategy(options, self.strategies)
            check_canvas(strategy, self.facts)
        except (UnknownName, InvalidPipeline) as error:
            text = f"{error.what}; {error.help}" if isinstance(error, UnknownName) else error.what
            raise Refused(400, text, param="strategy", code="invalid_request") from error
        except QdcError as error:
            raise Refused(
                400, "; ".join(error.where) or error.what, code="invalid_request"
            ) from error
        if needs_verifier(type(strategy)) and not self.verifies:
            raise Refused(
                400,
                "apd needs a verifier, and the server was started without one",
                param="strategy",
                code="unsupported",
            )
        return type(strategy)

    def text(
        self, text: str, *, special: bool = False, add_special_tokens: bool | None = None
    ) -> Read[list[int]]:
        """Read a prompt. What it gives raises ``Refused`` where the prompt writes the mask."""

        def read() -> list[int]:
            tokens = self.wording.prompt(
                text, special=special, add_special_tokens=add_special_tokens
            )
            if self.facts.mask_token_id in tokens:
                raise self._writes_mask("prompt", "nothing in front of an answer is filled")
            return tokens

        return read

    def conversation(self, messages: Sequence[Message]) -> Read[list[int]]:
        """Read a conversation in the form of the chat template."""
        return lambda: self.wording.chat([message.plain() for message in messages])

    def numbers(self, tokens: list[int]) -> Read[list[int]]:
        """Take tokens as they are. Raises ``Refused`` for one that the model does not have."""
        if any(not 0 <= token < self.facts.vocabulary for token in tokens):
            raise Refused(400, f"tokens are numbers below {self.facts.vocabulary}", param="prompt")
        return lambda: tokens


def _check_fills(options: DecodeOptions, strategy: type[Strategy]) -> None:
    """Refuse what has no meaning in a text with gaps. Raises ``Refused``."""
    wrong = None
    if needs_verifier(strategy):
        wrong = "strategy", "apd writes behind a prompt, and a gap has text behind it; take another"
    elif not options.stop_early:
        wrong = "stop_early", "stop_early is about answers, and a gap ends nothing; leave it out"
    if wrong is not None:
        raise Refused(400, wrong[1], param=wrong[0], code="unsupported")


async def while_there(request: Http, ticket: Ticket, *, whole: bool) -> None:
    """Wait for the answer, or for its first step; cancel it if the client goes away.

    Raises ``Refused`` for what the model's thread refuses, ``Gone`` without a client.
    """
    news = asyncio.ensure_future(_outcome(ticket) if whole else ticket.change())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((news, gone), return_when=asyncio.FIRST_COMPLETED)
        if not news.done():
            raise Gone
        news.result()
    except BaseException:
        ticket.cancel()
        raise
    finally:
        news.cancel()
        gone.cancel()


async def _outcome(ticket: Ticket) -> None:
    await ticket.end()


async def _disconnected(request: Http) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
