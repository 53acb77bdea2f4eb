"""The embedded worker: a process that serves one GGUF model with the mistral.rs wheel on OpenAI's routes.

`python -m neuron_server.embedded_engine.worker --model FILE.gguf --name NAME --port N`. It listens on loopback once the
model is in memory; a refused connection means that it is still loading.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cortex_common import log
from cortex_common.errors import (
    CortexError,
    ModelNotFound,
    NotFound,
    Unavailable,
    envelope,
    envelope_bytes,
)
from neuron_server.embedded_engine.key_check import KEY_VARIABLE, KeyMiddleware
from neuron_server.embedded_engine.mistral import MistralEngine, load_runner
from neuron_server.embedded_engine.openai_wire import Answer, Job, Kind, Piece, parse_job

DEFAULT_PARALLEL = 32
_CLIENT_CLOSED_REQUEST = 499


def create_app(engine: MistralEngine, name: str, key: str | None = None) -> Starlette:
    """Create the worker's application; plain Starlette, because every import delays a cold start.

    Args:
        engine: the engine.
        name: name of its model.
        key: what requests must carry as a bearer token; None if they need none.
    """
    started = int(time.time())

    async def health(_: Request) -> JSONResponse:
        return JSONResponse(
            {
                "status": "ok",
                "running": engine.running,
                "waiting": engine.waiting,
                "parallel": engine.parallel,
                "context": engine.context,
                "version": engine.version,
            }
        )

    async def models(_: Request) -> JSONResponse:
        entry = {"id": name, "object": "model", "created": started, "owned_by": "cortex"}
        listed = [entry | {"context_length": engine.context}]
        return JSONResponse({"object": "list", "data": listed})

    async def chat(request: Request) -> Response:
        return await _answer("chat", request, engine, name)

    async def text(request: Request) -> Response:
        return await _answer("text", request, engine, name)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", text, methods=["POST"]),
        ],
        exception_handlers={CortexError: _handle_error, HTTPException: _handle_http_error},
        middleware=[] if key is None else [Middleware(KeyMiddleware, key=key)],
    )


async def _handle_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, CortexError)
    return JSONResponse(envelope(error), status_code=error.status)


async def _handle_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    not_found = NotFound(f"the embedded engine has no {request.method} {request.url.path}")
    return JSONResponse(envelope(not_found), status_code=error.status_code)


async def _answer(kind: Kind, request: Request, engine: MistralEngine, name: str) -> Response:
    job = parse_job(kind, await request.body())
    if job.sampling.model not in {name, "default"}:
        raise ModelNotFound(
            f"this engine serves {name!r}, not {job.sampling.model!r}", param="model"
        )
    prefix = "chatcmpl" if kind == "chat" else "cmpl"
    answer = Answer(job, f"{prefix}-{uuid.uuid4().hex}", name, int(time.time()))
    pieces = engine.generate(job)
    gathering = asyncio.ensure_future(_gather(pieces, job))
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({gathering, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not gathering.done():
            gathering.cancel()
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        first = gathering.result()
    finally:
        disconnected.cancel()
        await asyncio.gather(gathering, disconnected, return_exceptions=True)
    if not job.stream:
        return Response(answer.whole(first), media_type="application/json")
    return StreamingResponse(
        _events(answer, first, pieces),
        media_type="text/event-stream",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


async def _gather(pieces: AsyncGenerator[Piece], job: Job) -> list[Piece]:
    """Return the first piece of a stream (so that an error is an HTTP error), or all pieces."""
    collected: list[Piece] = []
    async for piece in pieces:
        collected.append(piece)
        if job.stream:
            break
    if not collected:
        raise Unavailable("the engine ended without an answer")
    return collected


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    answer: Answer, first: list[Piece], rest: AsyncGenerator[Piece]
) -> AsyncIterator[bytes]:
    for piece in first:
        for chunk in answer.chunks(piece):
            yield chunk
    try:
        async with aclosing(rest):
            async for piece in rest:
                yield b"".join(answer.chunks(piece))
    except CortexError as error:
        yield b"data: " + envelope_bytes(error) + b"\n\n"


def main() -> None:
    """Load the model and serve it until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m neuron_server.embedded_engine.worker")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--name", required=True, help="the model's name in requests")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=DEFAULT_PARALLEL)
    parser.add_argument(
        "--context", type=int, help="maximum tokens per request; default: the model's"
    )
    options = parser.parse_args()
    log.configure_logging()
    runner = load_runner(options.model, options.parallel)
    asyncio.run(_serve(runner, options))


async def _serve(runner: Any, options: argparse.Namespace) -> None:
    engine = MistralEngine(runner, parallel=options.parallel, context=options.context)
    config = uvicorn.Config(
        create_app(engine, options.name, os.environ.get(KEY_VARIABLE)),
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    try:
        await uvicorn.Server(config).serve()
    finally:
        engine.close()


if __name__ == "__main__":
    main()
