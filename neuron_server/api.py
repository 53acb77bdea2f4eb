"""The neuron's HTTP API: routes that call the runtime."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Body, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from cortex_common import __version__
from cortex_common.errors import (
    BadRequest,
    CortexError,
    MalformedBody,
    NotFound,
    envelope,
)
from cortex_common.log_buffer import MAX_TAIL_LINES, MEDIA_TYPE, LogBuffer
from cortex_common.net.trusted_hosts import TrustedHosts
from cortex_common.schema.directives import MAX_DIRECTIVES, Directive
from cortex_common.schema.hardware import Discovery, Health
from cortex_common.schema.instances import (
    AttachedEngine,
    EndpointResponse,
    ForgetRequest,
    ForgetResponse,
    LoadResponse,
    LoadSpec,
    ModelInfo,
    RestartRequest,
    RestartResponse,
    UnloadRequest,
    UnloadResponse,
)
from cortex_common.schema.openapi import BEARER, OPERATION_STATUSES, Document, complete_document
from cortex_common.schema.usage import UsageReport
from neuron_server.event_stream import StatusEvents
from neuron_server.instances.state_machine import Instance
from neuron_server.metrics import exposition
from neuron_server.relay import Relay
from neuron_server.runtime import Runtime
from neuron_server.token_auth import TokenMiddleware

log = logging.getLogger(__name__)

UrlOf = Callable[[Instance], str]


def create_app(
    runtime: Runtime,
    *,
    relay: Relay | None,
    trusted: TrustedHosts,
    on_open: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Create the application that serves a neuron's API.

    Args:
        runtime: opened and closed with the application.
        relay: forwards requests to engines; None if clients reach engines directly.
        trusted: names of this host.
        on_open: called once the runtime is open.
    """
    log_buffer = LogBuffer()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        log_buffer.attach()
        await runtime.open()
        on_open()
        try:
            yield
        finally:
            await runtime.close()
            if relay is not None:
                relay.close()
            log_buffer.detach()

    app = FastAPI(
        title="cortex neuron", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(TokenMiddleware, trusted=trusted, token=runtime.token)
    _add_error_handlers(app)

    def url_of(request: Request) -> UrlOf:
        """Return a function that returns the base URL of an instance as the caller reaches it."""
        if relay is None:
            return runtime.engine_url
        base = str(request.base_url).rstrip("/")
        return lambda instance: f"{base}/engines/{instance.id}"

    # Added to the application directly, because including a router builds each of its routes twice.
    _add_node_routes(app, runtime, url_of)
    _add_model_routes(app, runtime, url_of)
    _add_log_routes(app, runtime, log_buffer)
    _use_complete_document(app)
    return app


def _use_complete_document(app: FastAPI) -> None:
    """Document the errors of all routes, and that they need the neuron's token."""
    generate = app.openapi

    def openapi() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = complete_document(
                generate(),
                schemes={"bearer": BEARER},
                needs_key=lambda _method, _path: True,
                statuses=lambda method, _: OPERATION_STATUSES if method == "POST" else (),
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it


def _add_node_routes(app: FastAPI, runtime: Runtime, url_of: Callable[[Request], UrlOf]) -> None:
    @app.get("/discovery")
    async def discovery() -> Discovery:
        """Return the host's devices, harnesses and warnings."""
        return runtime.discovery()

    @app.get("/health")
    async def health() -> Health:
        """Return the latest readings of the host's devices."""
        return runtime.health()

    @app.get("/harnesses")
    async def harnesses() -> tuple[AttachedEngine, ...]:
        """List the attached engines."""
        return runtime.attached.views()

    @app.post("/harnesses/{name}/restart")
    async def restart(name: str, request: RestartRequest | None = None) -> RestartResponse:
        """Restart an attached engine; responds once it lists its models again."""
        return await runtime.attached.restart(name, request or RestartRequest())

    @app.post("/directives")
    async def directives(
        changed: Annotated[list[Directive], Body(max_length=MAX_DIRECTIVES)],
    ) -> tuple[Directive, ...]:
        """Keep the pins, cordons and times to live that are newer than known ones, and return all of them."""
        return runtime.directives.apply(changed)

    @app.post("/usage")
    async def usage(report: UsageReport) -> None:
        """Take a gateway's report about how it used this node's instances."""
        runtime.record_usage(report)

    @app.get("/version")
    async def version() -> dict[str, str]:
        """Return the neuron's version."""
        return {"version": __version__}

    @app.get("/events", response_class=Response)
    async def events(request: Request) -> Response:
        """Stream server-sent events: the whole `status` immediately, after each change and once per second.

        Each entry of the event log is a `lifecycle` event. With Last-Event-ID, missed entries are sent first.
        """
        return StatusEvents(runtime, url_of(request), request.headers.get("last-event-id"))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Return metrics in Prometheus's text format."""
        text = exposition(
            runtime.status(url_of(request)),
            runtime.certificates(),
            runtime.tasks.failures,
            await runtime.engine_metrics(),
            runtime.state_write_failures,
        )
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_model_routes(app: FastAPI, runtime: Runtime, url_of: Callable[[Request], UrlOf]) -> None:
    @app.get("/models")
    async def models(request: Request) -> tuple[ModelInfo, ...]:
        """List all instances."""
        return runtime.models(url_of(request))

    @app.post("/models/load")
    async def load(
        spec: LoadSpec,
        response: Response,
        known: Annotated[str | None, Query(description="instance ids, separated by commas")] = None,
    ) -> LoadResponse:
        """Admit and start an instance: 202 while it loads, 200 if it is already ready.

        `known` are the model's instances that the caller knows of. If another instance already does the same work,
        because another caller was first, that instance is returned.
        """
        result = await runtime.load(spec, None if known is None else known.split(","))
        response.status_code = 200 if result.status == "loaded" else 202
        return result

    @app.post("/models/unload")
    async def unload(request: UnloadRequest) -> UnloadResponse:
        """Drain and stop instances."""
        return await runtime.unload(request)

    @app.post("/models/forget-size")
    async def forget_size(request: ForgetRequest) -> ForgetResponse:
        """Forget what loads of a model took, so that the next one is measured again."""
        return ForgetResponse(forgotten=runtime.forget_size(request.model_id))

    @app.get("/models/{model_id:path}/endpoint")
    async def endpoint(model_id: str, request: Request) -> EndpointResponse:
        """Return the endpoint for a model's inference requests."""
        return runtime.endpoint(model_id, url_of(request))


def _add_log_routes(app: FastAPI, runtime: Runtime, log_buffer: LogBuffer) -> None:
    @app.get("/logs", response_class=Response)
    async def neuron_log(
        lines: Annotated[int, Query(ge=0, le=MAX_TAIL_LINES)] = 200,
        follow: bool = False,
    ) -> Response:
        """Return the last lines of the neuron's log, one JSON object per line; with `follow`, stream new lines too."""
        if not follow:
            return Response(log_buffer.tail(lines), media_type=MEDIA_TYPE)
        stream = log_buffer.follow(lines, lambda: runtime.changes.closed)
        return StreamingResponse(stream, media_type=MEDIA_TYPE)

    @app.get("/models/{model_id:path}/logs")
    async def engine_log(
        model_id: str,
        instance_id: str | None = None,
        lines: Annotated[int, Query(ge=0, le=MAX_TAIL_LINES)] = 200,
        follow: bool = False,
    ) -> Response:
        """Return the last lines of the engine's output; with `follow`, stream new lines too."""
        instances = [managed.instance for managed in runtime.instances.find(model_id, instance_id)]
        output = runtime.engine_log(max(instances, key=lambda instance: instance.started_at))
        position = output.size()
        text = "".join(line + "\n" for line in output.tail(lines))
        if not follow:
            return PlainTextResponse(text)

        async def stream() -> AsyncIterator[bytes]:
            yield text.encode()
            async for chunk in output.follow(position, lambda: runtime.changes.closed):
                yield chunk

        return StreamingResponse(stream(), media_type="text/plain; charset=utf-8")


def _add_error_handlers(app: FastAPI) -> None:
    """Give all errors the same format."""

    @app.exception_handler(CortexError)
    async def _cortex_error(_: Request, error: CortexError) -> JSONResponse:
        headers = {"retry-after": str(round(error.retry_after))} if error.retry_after else None
        return JSONResponse(envelope(error), status_code=error.status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def _validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            cortex_error: CortexError = MalformedBody(
                f"the body is not valid JSON: {first['ctx']['error']}"
            )
        else:
            cortex_error = BadRequest(f"{where or 'body'}: {first['msg']}", param=where or None)
        return JSONResponse(envelope(cortex_error), status_code=cortex_error.status)

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
        call = f"{request.method[:20]} {request.url.path[:200]}"
        cortex_error: CortexError = NotFound(f"this neuron has no {call}")
        if error.status_code not in {404, 405}:
            cortex_error = BadRequest(str(error.detail))
        return JSONResponse(
            envelope(cortex_error), status_code=error.status_code, headers=error.headers
        )

    @app.exception_handler(Exception)
    async def _internal_error(_: Request, error: Exception) -> JSONResponse:
        log.error("request_failed", exc_info=error)
        unexpected = CortexError("internal error; see the neuron's log")
        return JSONResponse(envelope(unexpected), status_code=500)
