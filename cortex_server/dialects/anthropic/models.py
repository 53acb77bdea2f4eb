"""GET /v1/models and /v1/models/{id} in a shape that satisfies both SDKs.

Each entry carries Anthropic's keys and OpenAI's, so one list serves clients of either kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET, Struct, UnsetType


@dataclass(frozen=True, slots=True)
class Served:
    """One model as clients see it.

    Attributes:
        id: the name that clients send.
        created: Unix seconds; 0 when unknown.
        context: tokens that a request may use, prompt and answer.
        max_tokens: most tokens of an answer.
    """

    id: str
    created: float = 0.0
    context: int | None = None
    max_tokens: int | None = None


class ModelEntry(Struct):
    """A model with the keys of Anthropic's `ModelInfo` and of OpenAI's `Model`."""

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


def entry(model: Served) -> ModelEntry:
    """One model; encode it with msgspec for GET /v1/models/{id}."""
    return ModelEntry(
        id=model.id,
        type="model",
        display_name=model.id,
        created_at=datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        lifecycle="active",
        object="model",
        created=int(model.created),
        owned_by="cortex",
        max_input_tokens=UNSET if model.context is None else model.context,
        max_tokens=UNSET if model.max_tokens is None else model.max_tokens,
    )


def entry_body(model: Served) -> bytes:
    """The body of GET /v1/models/{id}."""
    return msgspec.json.encode(entry(model))


def page_body(
    models: Sequence[Served],
    *,
    limit: int | None = None,
    after_id: str | None = None,
    before_id: str | None = None,
) -> bytes:
    """The body of GET /v1/models.

    Args:
        models: all of them, in the order of the list.
        limit: most entries; None for all, as OpenAI's clients expect.
        after_id: start behind this one; an unknown id gives an empty page.
        before_id: end ahead of this one, likewise.
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
        data=[entry(models[i]) for i in chosen],
        has_more=len(chosen) < len(span),
        first_id=ids[chosen[0]] if chosen else None,
        last_id=ids[chosen[-1]] if chosen else None,
    )
    return msgspec.json.encode(page)
