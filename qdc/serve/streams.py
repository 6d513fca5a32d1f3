"""Server-sent events: OpenAI's chunks, and the steps that the page shows."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from qdc.serve.refusals import Refused
from qdc.serve.replies import Reply
from qdc.serve.ticket import Ticket
from qdc.serve.wording import Wording

SEPARATORS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}
"""Ends of lines that JSON leaves as they are, each with its escape."""


class EventStream(StreamingResponse):
    """Sends events of one ticket; when the client goes away nobody waits for it any more."""

    def __init__(self, events: AsyncIterator[str], ticket: Ticket) -> None:
        """Send what ``events`` gives."""
        super().__init__(events, media_type="text/event-stream")
        self._ticket = ticket

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all, or stop when the client is gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.cancel()


async def chunks(ticket: Ticket, reply: Reply) -> AsyncIterator[str]:
    """Final text as it grows, in OpenAI's form; an error ends the stream."""
    opening = reply.opening()
    if opening is not None:
        yield event(opening)
    sent = 0
    try:
        while True:
            outcome = ticket.outcome  # before the text, which only grows until then
            text = ticket.final.text
            if len(text) > sent:
                yield event(reply.delta(text[sent:]))
                sent = len(text)
            if outcome is not None:
                break
            await ticket.change()
    except Refused as refusal:
        yield event(refusal.body)
        return
    for message in reply.closing(outcome):
        yield event(message)
    yield "data: [DONE]\n\n"


async def steps(ticket: Ticket, reply: Reply, wording: Wording) -> AsyncIterator[str]:
    """Each state as the text of every token, ``null`` where it is masked; then the answer.

    States that a slow client has no time for are left out.
    """
    shown = None
    try:
        while True:
            outcome, progress = ticket.outcome, ticket.progress
            if progress is not None and progress is not shown:
                shown = progress
                pieces = await asyncio.to_thread(wording.pieces, progress.tokens, progress.masked)
                yield event(
                    {
                        "step": progress.step,
                        "steps": progress.steps,
                        "forwards": progress.forwards,
                        "seconds": round(progress.seconds, 4),
                        "tokens": pieces,
                    }
                )
            if outcome is not None:
                break
            await ticket.change()
    except Refused as refusal:
        yield event(refusal.body)
        return
    yield event(
        {
            "text": ticket.final.text,
            "finish_reason": outcome.finish,
            "usage": reply.usage(outcome),
        }
    )


def event(data: dict[str, Any]) -> str:
    """One server-sent event.

    Many clients take every separator of Unicode for the end of a line, not the line feed alone;
    what they may stumble over is escaped.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(SEPARATORS)
    return f"data: {text}\n\n"
