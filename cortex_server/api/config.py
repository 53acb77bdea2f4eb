"""The operator API's routes for the configuration: what is in force, and reading it again."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter

from cortex_common.config.provenance import ConfigView, list_settings
from cortex_common.errors import NotSupported
from cortex_common.schema.operations import Reloaded
from cortex_server.reload import Reloader


def config_router(reloader: Callable[[], Reloader | None]) -> APIRouter:
    """The routes under /operator/v1/config.

    Args:
        reloader: returns who reads the files; asked for at each request.
    """
    router = APIRouter(prefix="/operator/v1", tags=["operator"])

    def reader() -> Reloader:
        found = reloader()
        if found is None:
            raise NotSupported("this gateway was not started from files")
        return found

    @router.get("/config", summary="The settings in force")
    async def get_config() -> ConfigView:
        """Each value with the file and line, or the variable, that it came from; secrets are hidden."""
        gateway, models = reader().files
        return ConfigView(gateway=list_settings(gateway), models=list_settings(models))

    @router.post("/config/reload", summary="Read the configuration again")
    async def reload() -> Reloaded:
        """All of it or nothing: a wrong file changes nothing, and the answer says what is wrong."""
        return await reader().reload()

    return router
