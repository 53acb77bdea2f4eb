"""GET /metrics for Prometheus, on a listener of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cortex_server.api import errors
from cortex_server.auth.access_control import AccessControl
from cortex_server.auth.middleware import AuthMiddleware


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def metrics_app(metrics: Collector, access_control: Callable[[], AccessControl]) -> Starlette:
    """The application of the metrics listener.

    Args:
        metrics: what is told.
        access_control: who may read it.
    """

    async def get_metrics(_: Request) -> Response:
        # Gathered on the loop, where nothing changes meanwhile; written by a thread, so that no stream waits for it.
        registry = CollectorRegistry()
        registry.register(_Collected(metrics.collect()))
        text = await asyncio.to_thread(generate_latest, registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[Route("/metrics", get_metrics)],
        middleware=[
            Middleware(AuthMiddleware, access_control=access_control, refusal=errors.response)
        ],
        exception_handlers=errors.HANDLERS,
    )
