"""The whole API as one ASGI application."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastapi import APIRouter, FastAPI
from starlette.routing import Route as AppRoute

from cortex_common import __version__
from cortex_server.api import errors
from cortex_server.api.anthropic import hello_router
from cortex_server.api.cors import CorsMiddleware
from cortex_server.api.health import health_router
from cortex_server.api.openai import models_router
from cortex_server.auth.middleware import AuthMiddleware
from cortex_server.dataplane.asgi import AsgiRoute
from cortex_server.fleet.state import Fleet
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.routes import ROUTES


def create_app(
    fleet: Fleet, context: Callable[[], ProxyContext], routers: Iterable[APIRouter]
) -> FastAPI:
    """The whole API as an ASGI application.

    Args:
        fleet: what the listings show.
        context: the data plane, asked for at each request.
        routers: further routers, such as the operator API.
    """
    # A redirect would name the scheme and host that a proxy before the gateway was asked by itself.
    app = FastAPI(title="cortex", version=__version__, redoc_url=None, redirect_slashes=False)
    errors.install(app)
    app.add_middleware(
        AuthMiddleware, access_control=lambda: context().access_control, refusal=errors.response
    )
    # Outside of the guard: a browser asks whether it may ask without a key.
    app.add_middleware(CorsMiddleware, allowed=lambda: context().settings.allowed_origins)
    ours = (
        health_router(fleet, lambda: context().access_control.stopping),
        hello_router(),
        models_router(fleet),
    )
    for router in (*ours, *routers):
        # As they are: `include_router` would build each route anew for the first request that passes it.
        app.router.routes.extend(router.routes)
    for route in ROUTES.values():
        app.router.routes.append(AppRoute(route.path, AsgiRoute(context, route), methods=["POST"]))
    return app
