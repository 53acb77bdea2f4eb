"""Models and their instances as a neuron knows them: the wire of its /models routes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, NewType

from pydantic import Field

from cortex_common.log import Level
from cortex_common.schema.base import StrictWire, Wire
from cortex_common.schema.hardware import Health

ModelId = NewType("ModelId", str)
"""The name that clients send, such as "Qwen/Qwen3-32B"; slashes are part of it."""

InstanceId = NewType("InstanceId", str)
"""Names one loaded copy of a model on a node; unique over the fleet."""


class InstanceState(StrEnum):
    """Where one loaded copy of a model is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class LoadSpec(StrictWire):
    """POST /models/load: how one instance is to be started.

    Attributes:
        model_id: the name that clients send.
        harness: which harness of the node runs it.
        instance_id: chosen by the caller so that a repeat is recognised; made by the node when absent.
        source: where the weights are: a file or directory on the node, or a Hugging Face repository;
            the model id when absent.
        file: the file inside `source`, for repositories and directories with several.
        quant: such as "Q4_K_M"; how the harness understands it.
        tensor_parallel: how many devices share each layer.
        devices: indices on the node; empty lets the node choose.
        context: tokens a request may use, prompt and answer; None takes the model's own.
        parallel: requests that the engine computes side by side; None takes the harness's default.
        vram_mb: MiB that one device must have for this instance; None lets the node estimate.
        args: further arguments for the engine's command line.
        env: further environment for the engine.
    """

    model_id: Annotated[str, Field(min_length=1, max_length=512)]
    harness: str
    instance_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] | None = None
    source: str | None = None
    file: str | None = None
    quant: str | None = None
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    devices: tuple[int, ...] = ()
    context: Annotated[int, Field(ge=1)] | None = None
    parallel: Annotated[int, Field(ge=1, le=4096)] | None = None
    vram_mb: Annotated[int, Field(ge=0)] | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)


class LoadAnswer(Wire):
    """POST /models/load: 200 with "loaded", or 202 with "loading"."""

    status: Literal["loaded", "loading"]
    instance_id: InstanceId


class UnloadRequest(StrictWire):
    """POST /models/unload: ends every instance of a model, or the one that is named.

    Attributes:
        drain_seconds: how long requests in flight may go on before the engine is stopped.
        cut: what still goes on then is cut; else the unload is refused, and the instance takes requests again.
    """

    model_id: str
    instance_id: str | None = None
    drain_seconds: Annotated[float, Field(ge=0)] = 0.0
    cut: bool = True


class UnloadAnswer(Wire):
    """POST /models/unload: "unloaded" once the engines are gone and their memory is measured free."""

    status: Literal["unloaded"] = "unloaded"


class EndpointAnswer(Wire):
    """GET /models/{id}/endpoint: where the inference requests of a model go."""

    url: str
    instance_id: InstanceId


class ModelInfo(Wire):
    """One instance in GET /models.

    Attributes:
        id: the model's name.
        harness: its name in the node's settings.
        status: the instance's state.
        devices: indices of the devices that it stands on.
        vram_used_mb: MiB that its devices lack because of it, which its end would give back: what is measured
            for its process tree, and what is promised to it and not taken yet.
        vram_by_device: the same for each of `devices`, in that order.
        vram_measured_mb: MiB measured for its process tree on each of `devices`; empty when that is not known.
        vram_peak_mb: the most that was ever measured on one of them; 0 when not known.
        url: base URL of its OpenAI routes, once ready; with "/v1/chat/completions" behind it, it answers.
        served_as: the name that the engine wants in requests, where it is not the model's.
        progress: share of the load that is done, 0 to 1, when the engine tells.
        eta_s: seconds until ready, from past loads on this host; null for one that takes longer than those.
        load_seconds: what its load took.
        in_flight: requests on it, whoever sent them: those that the node relays, or what the engine told lately,
            where that is more.
        error: why it failed, with the engine's last words.
        started_at: Unix seconds at which its load began.
    """

    id: ModelId
    harness: str
    status: InstanceState
    devices: tuple[int, ...] = ()
    vram_used_mb: int = 0
    instance_id: InstanceId
    url: str | None = None
    context: int | None = None
    parallel: int | None = None
    vram_by_device: tuple[int, ...] = ()
    vram_measured_mb: tuple[int, ...] = ()
    vram_peak_mb: int = 0
    progress: float | None = None
    stage: str | None = None
    eta_s: float | None = None
    load_seconds: float | None = None
    in_flight: int = 0
    error: str | None = None
    engine_version: str | None = None
    served_as: str | None = None
    started_at: float = 0.0


class LifecycleEntry(Wire):
    """A `lifecycle` message of GET /events: one decision of the node, or one thing that happened to an instance.

    Attributes:
        at: Unix seconds.
        event: stable name, such as "load_admitted" or "engine_crashed".
        level: how much it matters, as the node's log says.
        facts: what it is about, for people: instance, model, reason, ...
    """

    at: float
    event: str
    level: Level = "info"
    facts: dict[str, str] = Field(default_factory=dict)


class AttachedEngine(Wire):
    """One entry of GET /harnesses: an engine that someone else runs, driven through its own load and unload.

    Attributes:
        harness: its name on the node.
        reachable: it answered when it was last looked at.
        restartable: the node knows its systemd unit; permission shows with the first restart.
        restarting: a restart is under way.
        cycles: loads and unloads by this node since the engine started. Its memory gets scattered with each.
    """

    harness: str
    url: str
    reachable: bool
    restartable: bool
    restarting: bool = False
    cycles: int = 0


class RestartRequest(StrictWire):
    """POST /harnesses/{name}/restart: restarts an attached engine, which drops whatever it is computing.

    Attributes:
        min_cycles: an engine with fewer cycles is left alone, so that a repeat, or a second gateway with the same
            idea, changes nothing.
        cut: requests that the engine has under way are cut; else it is not restarted while there are some.
    """

    min_cycles: Annotated[int, Field(ge=0)] = 0
    cut: bool = True


class RestartAnswer(Wire):
    """POST /harnesses/{name}/restart: "restarted", or "kept" where it had fewer cycles than `min_cycles`.

    Attributes:
        models: what the engine has loaded now, by its own names. After a restart these are all that it was configured
            with, also those that had been unloaded.
        seconds: until it listed its models again; 0 for one that was kept.
    """

    status: Literal["restarted", "kept"]
    models: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineFailures:
    """How often engines of a model failed on a node since its neuron started, loading or serving.

    Attributes:
        kind: how an engine ended, such as "crash", "out_of_memory" or "hung", or the code of the error that ended
            its load.
    """

    model: ModelId
    kind: str
    count: int


class NodeStatus(Wire):
    """One message of GET /events: the whole of what changes on a node.

    Small enough (a few KiB for a full host) to be sent whole: a reader that missed one is right again
    with the next.

    Attributes:
        attached: the engines of GET /harnesses.
        discovery: changes whenever GET /discovery has something new to say: a warning, a device.
        stopping_s: it was told to stop, and this is the last message; so many seconds at most it gives to requests
            that it relays, and takes no others.
        failures: of engines, by model and kind.
    """

    health: Health
    models: tuple[ModelInfo, ...] = ()
    attached: tuple[AttachedEngine, ...] = ()
    discovery: str = ""
    stopping_s: float | None = None
    failures: tuple[EngineFailures, ...] = ()
