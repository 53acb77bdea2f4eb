"""Responses of GET /v1/models and /v1/models/{id} that satisfy both SDKs.

Each entry has Anthropic's fields and OpenAI's, so one list serves the clients of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from msgspec import Struct, UnsetType

from cortex_server.dialects.chat import unset_if_none


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as clients see it.

    Attributes:
        id: the name that clients send.
        created: Unix seconds; 0 if unknown.
        context: tokens of prompt and completion together that a request can use.
        max_tokens: the most completion tokens.
    """

    id: str
    created: float = 0.0
    context: int | None = None
    max_tokens: int | None = None


class ModelEntry(Struct):
    """A model with the fields of Anthropic's `ModelInfo` and of OpenAI's `Model`."""

    id: str
    type: str
    display_name: str
    created_at: str
    lifecycle: str
    object: str
    created: int
    owned_by: str
    max_input_tokens: int | UnsetType
    max_tokens: int | UnsetType


class _Page(Struct):
    object: str
    data: list[ModelEntry]
    has_more: bool
    first_id: str | None
    last_id: str | None


def encode_model(model: ServedModel) -> bytes:
    """Encode the response body of GET /v1/models/{id}."""
    return msgspec.json.encode(_entry(model))


def encode_model_page(
    models: Sequence[ServedModel],
    *,
    limit: int | None = None,
    after_id: str | None = None,
    before_id: str | None = None,
) -> bytes:
    """Encode the response body of GET /v1/models.

    Args:
        models: all models, in order.
        limit: the most entries; None for all, as OpenAI's clients expect.
        after_id: start after this model; an unknown id gives an empty page.
        before_id: end before this model; an unknown id gives an empty page.
    """
    ids = [model.id for model in models]
    start, stop = 0, len(ids)
    if after_id is not None:
        start = ids.index(after_id) + 1 if after_id in ids else stop
    if before_id is not None:
        stop = ids.index(before_id) if before_id in ids else start
    span = range(start, max(start, stop))
    chosen = span if limit is None else span[-limit:] if before_id is not None else span[:limit]
    page = _Page(
        object="list",
        data=[_entry(models[i]) for i in chosen],
        has_more=len(chosen) < len(span),
        first_id=ids[chosen[0]] if chosen else None,
        last_id=ids[chosen[-1]] if chosen else None,
    )
    return msgspec.json.encode(page)


def _entry(model: ServedModel) -> ModelEntry:
    return ModelEntry(
        id=model.id,
        type="model",
        display_name=model.id,
        created_at=datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        lifecycle="active",
        object="model",
        created=int(model.created),
        owned_by="cortex",
        max_input_tokens=unset_if_none(model.context),
        max_tokens=unset_if_none(model.max_tokens),
    )
