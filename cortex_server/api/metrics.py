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
from typing_extensions import override

from cortex_server.api import errors
from cortex_server.api.auth_middleware import AuthMiddleware
from cortex_server.auth.access_control import AccessControl


class _CollectedMetrics(Collector):
    """Metrics that were collected before."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    @override
    def collect(self) -> Iterable[Metric]:
        return self._families


def metrics_app(collector: Collector, access_control: Callable[[], AccessControl]) -> Starlette:
    """Return the application of the metrics listener.

    Args:
        collector: collector of the metrics to expose.
        access_control: returns the current access control.
    """

    async def get_metrics(_: Request) -> Response:
        # Collected on the event loop, where nothing changes meanwhile; formatted in a thread, so that no stream waits.
        registry = CollectorRegistry()
        registry.register(_CollectedMetrics(collector.collect()))
        text = await asyncio.to_thread(generate_latest, registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[Route("/metrics", get_metrics)],
        middleware=[
            Middleware(
                AuthMiddleware,
                access_control=access_control,
                error_response=errors.error_response,
            )
        ],
        exception_handlers=errors.HANDLERS,
    )
