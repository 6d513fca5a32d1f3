"""The routes of the server: what is asked for under which path."""

import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request as Http
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp

from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.strategies import BUILT_IN, Strategies
from qdc.serve.bodies import (
    ChatRequest,
    CompletionRequest,
    FillRequest,
    Request,
    WatchRequest,
    read_body,
)
from qdc.serve.clients import Keys
from qdc.serve.engine import Engine
from qdc.serve.guard import Guard
from qdc.serve.intake import Gone, Intake, Read, receive, while_there
from qdc.serve.limits import Limits
from qdc.serve.offer import offer
from qdc.serve.page import page
from qdc.serve.refusals import Refused, internal
from qdc.serve.replies import Kind, Reply
from qdc.serve.streams import EventStream, chunks, fillings, steps
from qdc.serve.turns import Turns
from qdc.serve.wording import Wording


@dataclass(frozen=True)
class Service:
    """What is served, under which name."""

    name: str
    engine: Engine
    wording: Wording
    facts: DecodeFacts
    limits: Limits
    verifies: bool = False
    compiled: bool = False
    keys: Keys = field(default_factory=Keys)
    strategies: Strategies = field(default_factory=lambda: BUILT_IN)


def make_app(service: Service) -> ASGIApp:
    """Build the application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    intake = Intake(
        service.engine,
        service.wording,
        service.facts,
        service.limits,
        service.verifies,
        service.strategies,
        Turns(service.limits),
    )
    offered = offer(
        service.strategies,
        service.limits,
        service.facts,
        verifies=service.verifies,
    )
    started = int(time.time())

    def model() -> dict[str, Any]:
        return {
            "id": service.name,
            "object": "model",
            "created": started,
            "owned_by": "qdc",
            "qdc": {
                "compiled": service.compiled,
                "attention_block": service.facts.attention_block,
                "canvas": service.facts.canvas,
                "chat_template": service.wording.has_template,
                **offered,
            },
        }

    def check_name(name: str) -> None:
        if name != service.name:
            raise Refused(
                404,
                f"this server has the model {service.name!r} and no other",
                param="model",
                code="model_not_found",
            )

    async def answer(request: Http, body: Request, read: Read[list[int]]) -> Response:
        ticket = await intake.queue(request, body, read)
        kind: Kind = "chat" if isinstance(body, ChatRequest) else "text"
        reply = Reply(kind, service.name, len(ticket.prompt), body.include_usage)
        await while_there(request, ticket, whole=not body.stream)
        if body.stream:
            return EventStream(chunks(ticket, reply), ticket)
        assert ticket.outcome is not None
        return JSONResponse(reply.whole(ticket.final.text, ticket.outcome))

    @app.get("/")
    async def index() -> Response:
        html, policy = page()
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.get("/health")
    async def health() -> Response:
        running, waiting = service.engine.load
        alive = service.engine.alive
        state = {"status": "ok" if alive else "stopping", "running": running, "waiting": waiting}
        return JSONResponse(state, 200 if alive else 503)

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [model()]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        check_name(name)
        return JSONResponse(model())

    @app.post("/v1/chat/completions")
    async def chat(request: Http) -> Response:
        body = read_body(ChatRequest, await receive(request, service.limits))
        check_name(body.model)
        return await answer(request, body, intake.conversation(body.messages))

    @app.post("/v1/completions")
    async def complete(request: Http) -> Response:
        body = read_body(CompletionRequest, await receive(request, service.limits))
        check_name(body.model)
        prompt = body.one_prompt
        if isinstance(prompt, str):
            read = intake.text(
                prompt, special=bool(body.special), add_special_tokens=body.add_special_tokens
            )
        else:
            body.refuse_for_numbers()
            read = intake.numbers(prompt)
        return await answer(request, body, read)

    @app.post("/generate")
    async def generate(request: Http) -> Response:
        body = read_body(WatchRequest, await receive(request, service.limits))
        read = intake.conversation(body.messages or ())
        if body.prompt is not None:
            read = intake.text(body.prompt)
        ticket = await intake.queue(request, body, read)
        await while_there(request, ticket, whole=False)
        reply = Reply("text", service.name, len(ticket.prompt))
        return EventStream(steps(ticket, reply, service.wording), ticket)

    @app.post("/fill")
    async def fill(request: Http) -> Response:
        body = read_body(FillRequest, await receive(request, service.limits))
        ticket = await intake.queue_gaps(request, body)
        await while_there(request, ticket, whole=False)
        return EventStream(fillings(ticket, service.wording), ticket)

    @app.exception_handler(Refused)
    async def refused(request: Http, error: Refused) -> Response:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(Gone)
    async def gone(request: Http, error: Gone) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def plain(request: Http, error: HTTPException) -> Response:
        refusal = Refused(error.status_code, str(error.detail).lower())
        return JSONResponse(refusal.body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Http, error: Exception) -> Response:
        return JSONResponse(internal().body, 500)  # uvicorn logs the traceback

    return Guard(app, service.limits.hosts, service.keys)
