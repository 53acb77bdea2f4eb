"""Operator routes for API keys and their usage, implemented by `cortex_server.auth.key_service`."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter
from pydantic import BeforeValidator

from cortex_common.schema.keys import CreatedKey, CreateKeyRequest, KeyView, UsageRow
from cortex_common.schema.operation import OPERATOR_PREFIX
from cortex_server.auth.key_service import KeyService

_DEFAULT_DAYS = 30


def _require_day(text: object) -> object:
    if isinstance(text, str) and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        raise ValueError("is not a day like 2026-11-23")
    return text


# Without the check, pydantic takes numbers for Unix times.
Day = Annotated[date, BeforeValidator(_require_day)]


def keys_router(key_service: KeyService) -> APIRouter:
    """Return the routes /operator/v1/keys and /operator/v1/usage."""
    router = APIRouter(prefix=OPERATOR_PREFIX, tags=["operator"])

    @router.get("/keys", summary="All keys")
    async def list_keys() -> tuple[KeyView, ...]:
        """Return each key with its scopes, models and limits, without its secret."""
        return key_service.keys()

    @router.post("/keys", summary="Create a key", status_code=201)
    async def create_key(request: CreateKeyRequest) -> CreatedKey:
        """Return the new key with its secret, which cannot be retrieved later."""
        return await key_service.create(request)

    @router.delete("/keys/{name}", summary="Revoke a key")
    async def revoke_key(name: str) -> KeyView:
        """Invalidate the key immediately; its requests in flight continue."""
        return await key_service.revoke(name)

    @router.get("/usage", summary="Usage of the keys")
    async def get_usage(since: Day | None = None, until: Day | None = None) -> tuple[UsageRow, ...]:
        """Return the usage by day (UTC), key and model; by default of the last 30 days."""
        today = datetime.now(UTC).date()
        first = since or today - timedelta(days=_DEFAULT_DAYS - 1)
        return await key_service.usage(first.isoformat(), (until or today).isoformat())

    return router
