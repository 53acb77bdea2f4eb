"""The gateway's API as one ASGI application, without the inference routes, which `proxy.router` serves."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.routing import Route as AppRoute

from cortex_common import __version__
from cortex_server.api import errors
from cortex_server.api.anthropic import hello_router
from cortex_server.api.auth_middleware import AuthMiddleware
from cortex_server.api.cors import CorsMiddleware
from cortex_server.api.health import health_router
from cortex_server.api.openai import models_router
from cortex_server.api.openapi_document import use_complete_document
from cortex_server.api.paths import PathMiddleware
from cortex_server.api.responses import responses_router
from cortex_server.fleet.state import Fleet
from cortex_server.proxy.context import ProxyContext
from cortex_server.proxy.routes import ROUTES


def create_app(
    fleet: Fleet, context: Callable[[], ProxyContext], routers: Iterable[APIRouter]
) -> FastAPI:
    """Return the application.

    Args:
        fleet: the live state of the fleet.
        context: returns the shared state of the proxy; called for each request.
        routers: further routers, such as those of the operator API.
    """
    # A redirect would name the scheme and host that a reverse proxy used for its own request.
    app = FastAPI(
        title="cortex",
        version=__version__,
        docs_url=None,  # it would load its scripts from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    errors.install(app)
    app.add_middleware(
        AuthMiddleware,
        access_control=lambda: context().access_control,
        error_response=errors.error_response,
    )
    # Outside of AuthMiddleware, which looks at the path.
    app.add_middleware(PathMiddleware)
    # Outside of AuthMiddleware: browsers send preflight requests without a key.
    app.add_middleware(CorsMiddleware, allowed_origins=lambda: context().settings.allowed_origins)
    own_routers = (
        health_router(fleet, lambda: context().access_control.stopping),
        hello_router(),
        models_router(fleet),
        responses_router(context),
    )
    for router in (*own_routers, *routers):
        # `include_router` would build each route again for the first request that passes it.
        app.router.routes.extend(router.routes)
    for route in ROUTES.values():
        app.router.routes.append(AppRoute(route.path, _served_by_proxy, methods=["POST"]))
    use_complete_document(app)
    return app


async def _served_by_proxy(_request: Request) -> Response:
    """Stand for an inference route, so that other methods get a 405; a POST never gets here.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError
