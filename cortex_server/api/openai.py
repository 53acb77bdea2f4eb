"""GET /v1/models in OpenAI's shape, with what the fleet knows beside it."""

from __future__ import annotations

from fastapi import APIRouter, Request

from cortex_common.fleet import ModelState, ModelView
from cortex_common.wire import Wire
from cortex_server.auth.guard import KEY
from cortex_server.auth.keys import Key
from cortex_server.fleet.state import Fleet


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

    def entry(view: ModelView) -> ModelEntry:
        return ModelEntry(
            id=view.id,
            created=created,
            state=view.state,
            nodes=view.nodes,
            context_length=view.context,
            aliases=view.aliases,
        )

    @router.get("/v1/models")
    async def list_models(request: Request) -> ModelList:
        """Each model that can be asked for, loaded or not; with a key, those that it may use."""
        key: Key = request.scope[KEY]
        views = (v for v in fleet.snapshot.models if key.allows(v.id, *v.aliases))
        return ModelList(data=tuple(map(entry, views)))

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str, request: Request) -> ModelEntry:
        """One model, by name or alias."""
        snapshot = fleet.snapshot
        view = snapshot.model(name)
        key: Key = request.scope[KEY]
        if view is None or not key.allows(view.id, *view.aliases):
            raise fleet.names.not_found(name, (m.id for m in snapshot.models))
        return entry(view)

    return router
