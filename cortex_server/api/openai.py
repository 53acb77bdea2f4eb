"""GET /v1/models: in OpenAI's shape with what the fleet knows beside it, or in Anthropic's for its clients."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from cortex_common.schema.base import Wire
from cortex_common.schema.fleet import ModelState, ModelView
from cortex_server.api import anthropic
from cortex_server.auth.keys import Key
from cortex_server.auth.middleware import KEY
from cortex_server.fleet.model_aliases import is_pattern
from cortex_server.fleet.state import Fleet
from cortex_server.proxy.routes import suggest_route


class ModelEntry(Wire):
    """One model.

    Attributes:
        created: Unix seconds; OpenAI's clients require it. The start of this gateway.
        state: the best state of its instances, "unloaded" without any.
        nodes: where it is ready.
        context_length: tokens a request may use, where known.
        aliases: other names for it.
    """

    id: str
    object: str = "model"
    created: int
    owned_by: str = "cortex"
    state: ModelState
    nodes: tuple[str, ...] = ()
    context_length: int | None = None
    aliases: tuple[str, ...] = ()


class ModelList(Wire):
    """All models, each once."""

    object: str = "list"
    data: tuple[ModelEntry, ...]


def models_router(fleet: Fleet) -> APIRouter:
    """The model list that clients choose from."""
    router = APIRouter(tags=["models"])
    created = int(fleet.started_at)

    def entry(view: ModelView, name: str) -> ModelEntry:
        return ModelEntry(
            id=name,
            created=created,
            state=view.state,
            nodes=view.nodes,
            context_length=view.context,
            aliases=view.aliases,
        )

    def key_of(request: Request) -> Key:
        key: Key = request.scope[KEY]
        return key

    @router.get("/v1/models", response_model=ModelList)
    async def list_models(
        request: Request,
        limit: Annotated[int | None, Query(ge=1)] = None,
        after_id: str | None = None,
        before_id: str | None = None,
    ) -> ModelList | Response:
        """Each model that can be asked for, loaded or not; with a key, those that it may use, by names that it may use.

        Whoever sends `anthropic-version` or `x-api-key` gets Anthropic's page, which the parameters cut; it carries
        OpenAI's keys too.
        """
        key = key_of(request)
        listed = [(v, name) for v in fleet.snapshot.models for name in _names(v, key)]
        if anthropic.reads(request):
            served = [anthropic.served(v, name, created) for v, name in listed]
            return anthropic.page(served, limit=limit, after_id=after_id, before_id=before_id)
        return ModelList(data=tuple(entry(v, name) for v, name in listed))

    @router.get("/v1/models/{name:path}", response_model=ModelEntry)
    async def get_model(name: str, request: Request) -> ModelEntry | Response:
        """One model, by name or alias."""
        if not name and (meant := suggest_route(request.url.path)) is not None:
            raise meant
        snapshot = fleet.snapshot
        view = snapshot.model(fleet.known(name) or name)
        key = key_of(request)
        if view is None or not key.allows(view.id, name):
            raise fleet.unknown(name)
        if anthropic.reads(request):
            return anthropic.one(anthropic.served(view, name, created))
        return entry(view, view.id if key.allows(view.id) else name)

    # As monitors and some clients ask before they use a server.
    for path, answer in (("/v1/models", list_models), ("/v1/models/{name:path}", get_model)):
        router.add_api_route(
            path, answer, methods=["HEAD"], response_model=None, include_in_schema=False
        )
    return router


def _names(view: ModelView, key: Key) -> list[str]:
    """Its id, or where the key may only use other names of it, those."""
    if key.allows(view.id):
        return [view.id]
    return [name for name in view.aliases if not is_pattern(name) and key.allows(name)]
