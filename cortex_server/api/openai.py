"""GET /v1/models: in OpenAI's format with additional fields, or in Anthropic's format for its clients."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from cortex_common.schema.base import WireModel
from cortex_common.schema.fleet import ModelState, ModelView
from cortex_server.api import anthropic
from cortex_server.api.auth_middleware import KEY
from cortex_server.auth.keys import Key
from cortex_server.fleet.model_aliases import is_pattern
from cortex_server.fleet.state import Fleet
from cortex_server.proxy.routes import suggest_route


class ModelEntry(WireModel):
    """One model.

    Attributes:
        created: Unix seconds at which the gateway started; OpenAI's clients require the field.
        state: the best state of the model's instances; "unloaded" if there are none.
        nodes: the nodes on which it is ready.
        context_length: maximum tokens of one request, if known.
        aliases: other names of the model.
    """

    id: str
    object: str = "model"
    created: int
    owned_by: str = "cortex"
    state: ModelState
    nodes: tuple[str, ...] = ()
    context_length: int | None = None
    aliases: tuple[str, ...] = ()


class ModelList(WireModel):
    """All models, each once."""

    object: str = "list"
    data: tuple[ModelEntry, ...]


def models_router(fleet: Fleet) -> APIRouter:
    """Return the routes of the model list."""
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
        limit: Annotated[int | None, Query(ge=1, le=1000)] = None,
        after_id: str | None = None,
        before_id: str | None = None,
    ) -> ModelList | Response:
        """Return all configured models, loaded or not. A key that is restricted to some models lists only those.

        Clients that send `anthropic-version` or `x-api-key` get Anthropic's format, which the parameters paginate; it
        contains OpenAI's fields too.
        """
        key = key_of(request)
        models = [
            (view, name) for view in fleet.snapshot.models for name in _allowed_names(view, key)
        ]
        if anthropic.expects_anthropic_models(request):
            served = [anthropic.served_model(view, name, created) for view, name in models]
            return anthropic.models_response(
                served, limit=limit, after_id=after_id, before_id=before_id
            )
        return ModelList(data=tuple(entry(view, name) for view, name in models))

    @router.get("/v1/models/{name:path}", response_model=ModelEntry)
    async def get_model(name: str, request: Request) -> ModelEntry | Response:
        """Return one model, by name or alias."""
        if not name and (suggestion := suggest_route(request.url.path)) is not None:
            raise suggestion
        snapshot = fleet.snapshot
        view = snapshot.model(fleet.resolve_model(name) or name)
        key = key_of(request)
        if view is None or not key.allows_model(view.id, name):
            raise fleet.model_not_found(name, key.allows_model)
        if anthropic.expects_anthropic_models(request):
            return anthropic.model_response(anthropic.served_model(view, name, created))
        return entry(view, view.id if key.allows_model(view.id) else name)

    # Monitoring tools and some clients send HEAD before they use a server.
    for path, handler in (("/v1/models", list_models), ("/v1/models/{name:path}", get_model)):
        router.add_api_route(
            path, handler, methods=["HEAD"], response_model=None, include_in_schema=False
        )
    return router


def _allowed_names(view: ModelView, key: Key) -> list[str]:
    """Return the id of the model or, if the key only allows some of its aliases, those."""
    if key.allows_model(view.id):
        return [view.id]
    return [name for name in view.aliases if not is_pattern(name) and key.allows_model(name)]
