"""The operator API's routes for keys and usage. Thin; the work is done by `auth.desk`."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from fastapi import APIRouter

from cortex_common.schema.keys import CreatedKey, CreateKey, KeyView, UsageRow
from cortex_server.auth.key_service import KeyService

_USUAL_DAYS = 30


def keys_router(key_service: KeyService) -> APIRouter:
    """The routes /operator/v1/keys and /operator/v1/usage."""
    router = APIRouter(prefix="/operator/v1", tags=["operator"])

    @router.get("/keys", summary="All keys")
    async def list_keys() -> tuple[KeyView, ...]:
        """Each key with what it may do; no secrets, for none is kept."""
        return key_service.keys()

    @router.post("/keys", summary="Make a key", status_code=201)
    async def create_key(load_request: CreateKey) -> CreatedKey:
        """The answer holds the secret, this once."""
        return await key_service.create(load_request)

    @router.delete("/keys/{name}", summary="Revoke a key")
    async def revoke_key(name: str) -> KeyView:
        """From now on it opens nothing; requests that it has under way go on."""
        return await key_service.revoke(name)

    @router.get("/usage", summary="What keys used")
    async def get_usage(
        since: date | None = None, until: date | None = None
    ) -> tuple[UsageRow, ...]:
        """By day (UTC), key and model; the last 30 days unless told otherwise."""
        today = datetime.now(UTC).date()
        first = since or today - timedelta(days=_USUAL_DAYS - 1)
        return await key_service.usage(first.isoformat(), (until or today).isoformat())

    return router
