"""Passes inference requests on to engines, for callers that can't reach loopback of this host."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from cortex_common.errors import BadRequest, Unavailable, UpstreamFailed
from cortex_common.log import event as log_event
from cortex_common.schema.instances import InstanceId, InstanceState
from neuron_server.event_stream import until_gone
from neuron_server.harness.probe import engine_tls
from neuron_server.runtime import Runtime

log = logging.getLogger(__name__)

_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
_HOP_BY_HOP_RAW = {name.encode() for name in _HOP_BY_HOP}
_OURS = {"authorization", "expect", "host", "x-conversation-id"}
"""Not for the engine: the token is the neuron's, and llama-server keeps generating for a conversation id."""
_BODY_FOLLOWS = {"content-length", "transfer-encoding"}
_KEPT_S = 2.0
"""Seconds that an idle connection is kept: less than any engine does, so that none is closed under a request."""
_LISTENS_S = 1.0
_CUT = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
_REACHABLE = {InstanceState.READY, InstanceState.DRAINING}


class Relay:
    """`/engines/{instance}/...`: bytes both ways, nothing buffered; a caller that leaves closes the engine's side."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=5.0),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=32, keepalive_expiry=_KEPT_S
            ),
            trust_env=False,
            verify=engine_tls(runtime.config.harnesses),
        )

    async def close(self) -> None:
        """Close all connections to engines."""
        await self._http.aclose()

    def add_route(self, app: FastAPI) -> None:
        """The one route, for all methods."""
        app.add_api_route(
            "/engines/{instance_id}/{path:path}",
            self._pass_on,
            methods=["GET", "POST", "DELETE"],
            include_in_schema=False,
        )

    async def _pass_on(self, instance_id: str, path: str, request: Request) -> Response:
        instance = self._runtime.instances.called(instance_id)
        if instance.state not in _REACHABLE:
            raise Unavailable(f"instance {instance_id} is {instance.state}", retry_after=1.0)
        url = f"{self._runtime.engine_url(instance)}/{path}"
        has_body = not _BODY_FOLLOWS.isdisjoint(request.headers.keys())
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name not in _HOP_BY_HOP | _OURS
        ]
        uploaded = asyncio.Event()
        upstream = self._http.build_request(
            request.method,
            url,
            params=request.query_params,
            headers=headers,
            content=_body(request.receive, uploaded) if has_body else None,
        )
        if not has_body:
            uploaded.set()
        return _Relayed(self._http, upstream, uploaded, self._runtime.inflight.relayed, instance.id)


async def _body(receive: Receive, uploaded: asyncio.Event) -> AsyncIterator[bytes]:
    """The request's body as it comes; `uploaded` is set once its last piece is here.

    Raises:
        ClientDisconnect: the caller left before.
    """
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        if not more:
            uploaded.set()
        if chunk := message.get("body", b""):
            yield chunk


async def _listens(url: httpx.URL) -> bool:
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_LISTENS_S):
            _, writer = await asyncio.open_connection(url.host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


class _Relayed(Response):
    """One request on its way through; whichever side ends first ends the other."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        upstream: httpx.Request,
        uploaded: asyncio.Event,
        in_flight: dict[InstanceId, int],
        instance: InstanceId,
    ) -> None:
        super().__init__()
        self._http = http
        self._upstream = upstream
        self._uploaded = uploaded
        self._in_flight = in_flight
        self._instance = instance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Relay until either side ends.

        Raises:
            UpstreamFailed: the engine broke off before its answer began.
            BadRequest: it lives, and did so amid the body.
        """
        self._in_flight[self._instance] = self._in_flight.get(self._instance, 0) + 1
        passing = asyncio.create_task(self._pass_through(send))
        leaving = asyncio.create_task(self._until_gone(receive))
        try:
            await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                passing.result()
        finally:
            self._count_down()
            passing.cancel()
            leaving.cancel()
            await asyncio.gather(passing, leaving, return_exceptions=True)

    async def _until_gone(self, receive: Receive) -> None:
        """While the body is on its way, whoever reads it sees the caller leave."""
        await self._uploaded.wait()
        await until_gone(receive)

    async def _pass_through(self, send: Send) -> None:
        try:
            response = await self._http.send(self._upstream, stream=True)
        except ClientDisconnect:
            return
        except httpx.HTTPError as failed:
            cut = isinstance(failed, _CUT) and not self._uploaded.is_set()
            # Engines refuse a route that they lack, or a size, without reading on, and the words are lost with the
            # connection. That says nothing against one that goes on listening, as a 502 would.
            if cut and await _listens(self._upstream.url):
                raise BadRequest(
                    "the engine closed the connection amid the request's body",
                    hints=["it may have no such route, or take nothing as large"],
                ) from failed
            raise UpstreamFailed(f"the engine broke off: {failed!r}") from failed
        try:
            headers = [(k, v) for k, v in response.headers.raw if k.lower() not in _HOP_BY_HOP_RAW]
            status = response.status_code
            await send({"type": "http.response.start", "status": status, "headers": headers})
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except httpx.HTTPError as failed:
            # No end is sent, so that the connection breaks: the caller must not take this for an answer.
            log_event(
                log, "relay_broke", logging.WARNING, instance=self._instance, reason=repr(failed)
            )
        finally:
            await response.aclose()

    def _count_down(self) -> None:
        left = self._in_flight.pop(self._instance, 1) - 1
        if left > 0:
            self._in_flight[self._instance] = left
