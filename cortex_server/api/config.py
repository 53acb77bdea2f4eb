"""The operator API's route for reading the configuration again."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter

from cortex_common.errors import NotSupported
from cortex_common.operator import Reloaded
from cortex_server.reload import Reloader


def config_router(reloader: Callable[[], Reloader | None]) -> APIRouter:
    """The route /operator/v1/config/reload.

    Args:
        reloader: returns who reads the files; asked for at each request.
    """
    router = APIRouter(prefix="/operator/v1", tags=["operator"])

    @router.post("/config/reload", summary="Read the configuration again")
    async def reload() -> Reloaded:
        """All of it or nothing: a wrong file changes nothing, and the answer says what is wrong."""
        found = reloader()
        if found is None:
            raise NotSupported("this gateway was not started from files")
        return await found.reload()

    return router
