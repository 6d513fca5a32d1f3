"""Server-sent events: OpenAI's chunks, and the steps that the page shows."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from qdc.serve.refusals import Refused
from qdc.serve.replies import Reply
from qdc.serve.ticket import AnswerProgress, AnswerTicket, FillTicket, Outcome, Ticket
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


async def chunks(ticket: AnswerTicket, reply: Reply) -> AsyncIterator[str]:
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


async def steps(ticket: AnswerTicket, reply: Reply, wording: Wording) -> AsyncIterator[str]:
    """Each state as the text of every token, ``null`` where it is masked; then the answer."""

    def shown(progress: AnswerProgress) -> dict[str, Any]:
        return {"tokens": wording.pieces(progress.tokens, progress.masked)}

    def last(outcome: Outcome) -> dict[str, Any]:
        return {
            "text": ticket.final.text,
            "finish_reason": outcome.finish,
            "usage": reply.usage(outcome),
        }

    async for each in _states(ticket, shown, last):
        yield each


async def fillings(ticket: FillTicket, wording: Wording) -> AsyncIterator[str]:
    """Each state as the text of every token in a gap, ``null`` where it is masked; then the text.

    The last event has the text of each gap too: read by itself, so that it fits what a client has
    around it.
    """
    text = ticket.text

    def shown(progress: AnswerProgress) -> dict[str, Any]:
        states = zip(text.by_gap(progress.tokens), text.by_gap(progress.masked), strict=True)
        return {"gaps": [wording.pieces(tokens, masked) for tokens, masked in states]}

    def last(outcome: Outcome) -> dict[str, Any]:
        found = [wording.pieces(gap, [False] * text.size) for gap in text.portions(ticket.filled)]
        usage = Reply("text", "", text.given).usage(outcome)
        return {
            "text": wording.decode(text.filled(ticket.filled)),
            "gaps": ["".join(piece or "" for piece in gap) for gap in found],
            "usage": usage,
        }

    async for each in _states(ticket, shown, last):
        yield each


async def _states(
    ticket: Ticket,
    shown: Callable[[AnswerProgress], dict[str, Any]],
    last: Callable[[Outcome], dict[str, Any]],
) -> AsyncIterator[str]:
    """What the two functions make of each state and of the end, each called in a thread.

    States that a slow client has no time for are left out.
    """
    before = None
    try:
        while True:
            outcome, progress = ticket.outcome, ticket.progress
            if progress is not None and progress is not before:
                before = progress
                yield event(
                    {
                        "step": progress.step,
                        "steps": progress.steps,
                        "forwards": progress.forwards,
                        "seconds": round(progress.seconds, 4),
                        **await asyncio.to_thread(shown, progress),
                    }
                )
            if outcome is not None:
                break
            await ticket.change()
    except Refused as refusal:
        yield event(refusal.body)
        return
    yield event(await asyncio.to_thread(last, outcome))


def event(data: dict[str, Any]) -> str:
    """One server-sent event.

    Many clients take every separator of Unicode for the end of a line, not the line feed alone;
    what they may stumble over is escaped.
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(SEPARATORS)
    return f"data: {text}\n\n"
