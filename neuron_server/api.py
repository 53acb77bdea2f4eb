"""The neuron's HTTP API: thin routes over the runtime."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from cortex_common import __version__
from cortex_common.errors import (
    AuthenticationFailed,
    BadRequest,
    CortexError,
    MalformedBody,
    NotFound,
    envelope,
)
from cortex_common.log_buffer import MAX_TAIL_LINES, MEDIA_TYPE, LogBuffer
from cortex_common.schema.hardware import Discovery, Health
from cortex_common.schema.instances import (
    AttachedEngine,
    EndpointResponse,
    LoadResponse,
    LoadSpec,
    ModelInfo,
    RestartRequest,
    RestartResponse,
    UnloadRequest,
    UnloadResponse,
)
from neuron_server.event_stream import StatusEvents
from neuron_server.instances.state_machine import Instance
from neuron_server.metrics import exposition
from neuron_server.relay import Relay
from neuron_server.runtime import Runtime

UrlOf = Callable[[Instance], str]


def create_app(
    runtime: Runtime, *, relay: Relay | None, on_open: Callable[[], None] = lambda: None
) -> FastAPI:
    """The API of one neuron.

    Args:
        runtime: opened and closed with the application.
        relay: passes requests on to engines; None where callers reach engines themselves.
        on_open: called once the runtime is open.
    """
    kept = LogBuffer()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        kept.attach()
        await runtime.open()
        on_open()
        try:
            yield
        finally:
            await runtime.close()
            if relay is not None:
                await relay.close()
            kept.detach()

    guard = [Depends(_token_check(runtime.config.neuron.token))]
    app = FastAPI(title="cortex neuron", version=__version__, lifespan=lifespan, dependencies=guard)
    _answer_errors(app)

    def url_of(request: Request) -> UrlOf:
        """Where an instance's requests go, seen from the caller."""
        if relay is None:
            return runtime.engine_url
        base = str(request.base_url).rstrip("/")
        return lambda instance: f"{base}/engines/{instance.id}"

    # On the application itself: a router that is included has each of its routes built twice.
    _add_node_routes(app, runtime, url_of)
    _add_model_routes(app, runtime, url_of)
    _add_log_routes(app, runtime, kept)
    if relay is not None:
        relay.add_route(app)
    return app


def _add_node_routes(app: FastAPI, runtime: Runtime, url_of: Callable[[Request], UrlOf]) -> None:
    @app.get("/discovery")
    async def discovery() -> Discovery:
        """What this host is."""
        return runtime.discovery()

    @app.get("/health")
    async def health() -> Health:
        """The latest reading of its devices."""
        return runtime.health()

    @app.get("/harnesses")
    async def harnesses() -> tuple[AttachedEngine, ...]:
        """The engines that someone else runs."""
        return runtime.attached.views()

    @app.post("/harnesses/{name}/restart")
    async def restart(name: str, request: RestartRequest | None = None) -> RestartResponse:
        """Restart such an engine; answers once it lists its models again."""
        return await runtime.attached.restart(name, request or RestartRequest())

    @app.get("/version")
    async def version() -> dict[str, str]:
        """The neuron's version."""
        return {"version": __version__}

    @app.get("/events", response_class=Response)
    async def events(request: Request) -> Response:
        """Server-sent events: the whole `status` at once, after each change and once a second.

        Each decision is a `lifecycle` entry. With Last-Event-ID, those that were missed come first.
        """
        return StatusEvents(runtime, url_of(request), request.headers.get("last-event-id"))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """The same in Prometheus's text format."""
        text = exposition(runtime.status(url_of(request)), runtime.certificates())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_model_routes(app: FastAPI, runtime: Runtime, url_of: Callable[[Request], UrlOf]) -> None:
    @app.get("/models")
    async def models(request: Request) -> tuple[ModelInfo, ...]:
        """All instances."""
        return runtime.models(url_of(request))

    @app.post("/models/load")
    async def load(
        spec: LoadSpec,
        response: Response,
        known: Annotated[str | None, Query(description="instances, by commas")] = None,
    ) -> LoadResponse:
        """Admit and start an instance: 202 while it loads, 200 when it is ready already.

        With `known`, the copies of the model that the caller knows of, one that it doesn't know is the answer when it
        does the same work: another caller was first.
        """
        answer = await runtime.load(spec, None if known is None else known.split(","))
        response.status_code = 200 if answer.status == "loaded" else 202
        return answer

    @app.post("/models/unload")
    async def unload(request: UnloadRequest) -> UnloadResponse:
        """Drain and end instances."""
        return await runtime.unload(request)

    @app.get("/models/{model_id:path}/endpoint")
    async def endpoint(model_id: str, request: Request) -> EndpointResponse:
        """Where the model's inference requests go."""
        return runtime.endpoint(model_id, url_of(request))


def _add_log_routes(app: FastAPI, runtime: Runtime, kept: LogBuffer) -> None:
    @app.get("/logs", response_class=Response)
    async def own_log(
        lines: Annotated[int, Query(ge=0, le=MAX_TAIL_LINES)] = 200,
        follow: bool = False,
    ) -> Response:
        """What this neuron logged, one JSON object a line: its last lines, and with `follow` whatever comes."""
        if not follow:
            return Response(kept.tail(lines), media_type=MEDIA_TYPE)
        lasting = kept.follow(lines, lambda: runtime.changes.closed)
        return StreamingResponse(lasting, media_type=MEDIA_TYPE)

    @app.get("/models/{model_id:path}/logs")
    async def engine_log(
        model_id: str,
        instance_id: str | None = None,
        lines: Annotated[int, Query(ge=0, le=MAX_TAIL_LINES)] = 200,
        follow: bool = False,
    ) -> Response:
        """The engine's own output: its last lines, and with `follow` whatever comes."""
        found = [managed.instance for managed in runtime.instances.find(model_id, instance_id)]
        output = runtime.engine_log(max(found, key=lambda instance: instance.started_at))
        position = output.size()
        text = "".join(line + "\n" for line in output.tail(lines))
        if not follow:
            return PlainTextResponse(text)

        async def on() -> AsyncIterator[bytes]:
            yield text.encode()
            async for chunk in output.follow(position, lambda: runtime.changes.closed):
                yield chunk

        return StreamingResponse(on(), media_type="text/plain; charset=utf-8")


def _token_check(token: str | None) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        if token is None:
            return
        sent = request.headers.get("authorization", "")
        if not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
            what = "this is not the token of this neuron" if sent else "this neuron needs its token"
            raise AuthenticationFailed(
                f"{what}: see token and token_file in neuron.toml, and in [[neurons]] of the gateway",
                hints=("send it as `Authorization: Bearer ...`",),
            )

    return check


def _answer_errors(app: FastAPI) -> None:
    """One shape for every error, whoever raised it."""

    @app.exception_handler(CortexError)
    async def _known(_: Request, error: CortexError) -> JSONResponse:
        headers = {"retry-after": str(round(error.retry_after))} if error.retry_after else None
        return JSONResponse(envelope(error), status_code=error.status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            known: CortexError = MalformedBody(f"the body is not JSON: {first['ctx']['error']}")
        else:
            known = BadRequest(f"{where or 'body'}: {first['msg']}", param=where or None)
        return JSONResponse(envelope(known), status_code=known.status)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        known = NotFound(f"this neuron has no {request.method} {request.url.path}")
        return JSONResponse(envelope(known), status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def _broken(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(envelope(CortexError(f"internal error: {error!r}")), status_code=500)
