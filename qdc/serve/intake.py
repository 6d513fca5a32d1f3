"""From the bytes of a request to a ticket in the queue."""

import asyncio
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.requests import Request as Http

from qdc.errors import QdcError
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.options import DecodeOptions
from qdc.serve.bodies import Body
from qdc.serve.engine import Engine
from qdc.serve.finaltext import FinalText
from qdc.serve.limits import Limits
from qdc.serve.refusals import Refused, from_error
from qdc.serve.ticket import Ticket
from qdc.serve.wording import Wording

DEFAULT_LENGTH: int = DecodeOptions.model_fields["length"].default


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

    async def queue(self, body: Body, prompt: str | list[int] | list[dict[str, str]]) -> Ticket:
        """Queue a prompt: text, tokens or messages. Raises ``Refused``."""
        tokens = await asyncio.to_thread(self._tokens, prompt)
        room = self.limits.max_length - len(tokens)
        length = body.length
        if room < (length or 1):
            asked = "and no answer fits" if length is None else f"and an answer of {length}"
            raise Refused(
                400,
                f"a prompt of {len(tokens)} tokens {asked}: the server takes "
                f"{self.limits.max_length} in all",
                code="context_length_exceeded",
                param="max_tokens" if length is not None else None,
            )
        options = body.options(min(DEFAULT_LENGTH, room) if length is None else length)
        if options.strategy == "apd" and not self.verifies:
            raise Refused(
                400,
                "apd needs a verifier, and the server was started without one",
                param="strategy",
                code="unsupported",
            )
        final = FinalText(self.wording.decode, body.stops)
        ticket = Ticket(tokens, options, final, self.facts.ends)
        self.engine.submit(ticket)
        return ticket

    def _tokens(self, prompt: str | list[int] | list[dict[str, str]]) -> list[int]:
        if isinstance(prompt, str):
            return self.wording.encode(prompt)
        if prompt and isinstance(prompt[0], dict):
            try:
                return self.wording.chat(prompt)  # type: ignore[arg-type]
            except QdcError as error:
                raise from_error(error) from error
        tokens: list[int] = prompt  # type: ignore[assignment]
        if any(not 0 <= token < self.facts.vocabulary for token in tokens):
            raise Refused(400, f"tokens are numbers below {self.facts.vocabulary}", param="prompt")
        return tokens


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
