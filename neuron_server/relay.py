"""Passes inference requests on to engines, for callers that can't reach loopback of this host."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from cortex_common.errors import Unavailable, UpstreamFailed
from cortex_common.models import InstanceId, InstanceState
from neuron_server.runtime import Runtime

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
_OURS = {"authorization", "host", "content-length", "x-conversation-id"}
"""Not for the engine: the token is the neuron's, and llama-server keeps generating for a conversation id."""
_REACHABLE = {InstanceState.READY, InstanceState.DRAINING}


class Relay:
    """`/engines/{instance}/...`: bytes both ways, nothing buffered; a caller that leaves closes the engine's side."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections to engines."""
        await self._http.aclose()

    def routes(self) -> APIRouter:
        """The one route, for all methods."""
        router = APIRouter()
        router.add_api_route(
            "/engines/{instance_id}/{path:path}",
            self._pass_on,
            methods=["GET", "POST", "DELETE"],
            include_in_schema=False,
        )
        return router

    async def _pass_on(self, instance_id: str, path: str, request: Request) -> Response:
        instance = self._runtime.instance(instance_id)
        if instance.state not in _REACHABLE:
            raise Unavailable(f"instance {instance_id} is {instance.state}", retry_after=1.0)
        url = f"{self._runtime.engine_url(instance)}/{path}"
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name not in _HOP_BY_HOP | _OURS
        ]
        upstream = self._http.build_request(
            request.method,
            url,
            params=request.query_params,
            headers=headers,
            content=await request.body(),
        )
        counted = self._runtime.relayed
        counted[instance.id] = counted.get(instance.id, 0) + 1
        try:
            response = await self._http.send(upstream, stream=True)
        except httpx.HTTPError as failed:
            self._done(instance.id)
            raise UpstreamFailed(f"the engine broke off: {failed!r}") from failed
        except BaseException:
            self._done(instance.id)
            raise
        return StreamingResponse(
            self._body(response, instance.id),
            status_code=response.status_code,
            headers={k: v for k, v in response.headers.items() if k not in _HOP_BY_HOP},
        )

    async def _body(self, response: httpx.Response, instance: InstanceId) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.aiter_raw():
                yield chunk
        finally:
            self._done(instance)
            await response.aclose()

    def _done(self, instance: InstanceId) -> None:
        left = self._runtime.relayed.pop(instance, 1) - 1
        if left > 0:
            self._runtime.relayed[instance] = left
