"""Operator routes for the configuration: show the effective settings and reload the files."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter

from cortex_common.config.provenance import ConfigView, list_settings
from cortex_common.errors import NotSupported
from cortex_common.schema.operation import OPERATOR_PREFIX
from cortex_common.schema.operations import RELOAD, ReloadConfigRequest, ReloadResult
from cortex_server.api.operator import add_operation
from cortex_server.reload import Reloader


def config_router(reloader: Callable[[], Reloader | None]) -> APIRouter:
    """Return the routes under /operator/v1/config.

    Args:
        reloader: returns the current reloader; called at each request.
    """
    router = APIRouter(prefix=OPERATOR_PREFIX, tags=["operator"])

    def reader() -> Reloader:
        found = reloader()
        if found is None:
            raise NotSupported("this gateway was not started from files")
        return found

    @router.get("/config", summary="The effective settings")
    async def get_config() -> ConfigView:
        """Return each value with the file and line or the environment variable that set it; secrets are redacted."""
        gateway, models = reader().files
        return ConfigView(gateway=list_settings(gateway), models=list_settings(models))

    async def reload(_request: ReloadConfigRequest) -> ReloadResult:
        return await reader().reload()

    add_operation(router, RELOAD, reload)
    return router
