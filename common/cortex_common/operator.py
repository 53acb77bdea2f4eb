"""Requests and answers of the operator API (/operator/v1)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cortex_common.fleet import ModelState
from cortex_common.wire import StrictWire, Wire


class LoadModel(StrictWire):
    """POST /operator/v1/models/load.

    Attributes:
        model: name or alias.
        node: load it there; the gateway chooses when absent.
        devices: indices on that node.
        wait: answer only when the model is ready.
        timeout_s: how long to wait.
    """

    model: str
    node: str | None = None
    devices: tuple[int, ...] = ()
    wait: bool = False
    timeout_s: Annotated[float, Field(gt=0)] = 1800.0


class UnloadModel(StrictWire):
    """POST /operator/v1/models/unload.

    Attributes:
        model: name or alias.
        drain_timeout_s: how long requests in flight may go on before the engine is stopped.
    """

    model: str
    drain_timeout_s: Annotated[float, Field(ge=0)] = 60.0


class ModelAction(Wire):
    """What became of a model.

    Attributes:
        model: its id.
        state: its state now.
        nodes: where it stands.
        seconds: what the action took, where it was waited for.
        vram_mb: MiB it uses, once measured.
    """

    model: str
    state: ModelState
    nodes: tuple[str, ...] = ()
    seconds: float | None = None
    vram_mb: int | None = None
