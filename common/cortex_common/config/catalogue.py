"""models.toml: the catalogue of model configs, which say how each model is served."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from cortex_common.config.base import Section
from cortex_common.schema.bounds import MAX_DURATION_S, MAX_NAME_LENGTH, Mib, Tokens
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import LoadSpec
from cortex_common.units import DURATION_PATTERN, parse_duration


def _to_seconds(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


_DURATION_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": MAX_DURATION_S},
        {"type": "string", "pattern": DURATION_PATTERN},
    ]
}

Duration = Annotated[
    float,
    BeforeValidator(_to_seconds),
    Field(ge=0, le=MAX_DURATION_S, allow_inf_nan=False),
    WithJsonSchema(_DURATION_SCHEMA, mode="validation"),
]
"""Seconds, written as a number or as a string like "90s", "10m" or "1h30m"."""


class Replicas(Section):
    """[models.replicas]: number of instances of a model across the fleet."""

    min: Annotated[int, Field(ge=0, le=1000)] = 0
    """Instances to keep loaded; eviction never goes below this number. After an operator unloads the model, no instance
    is loaded until a client requests it, the gateway restarts, or another gateway keeps it loaded."""

    max: Annotated[int, Field(ge=1, le=1000)] = 1
    """Maximum number of instances. Another one is started when requests queue and memory is free."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        return self


class ParamsSection(Section):
    """[models.params]: changes to chat and completion requests before they are sent to the engine."""

    defaults: dict[str, Any] = Field(default_factory=dict)
    """Fields to add to requests that lack them, such as {temperature = 0.6}."""

    overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace the client's values."""

    strip: tuple[str, ...] = ()
    """Request fields to drop because the engine rejects them."""

    clamp_max_tokens: bool = False
    """Limit the requested completion length to the part of `context` that the prompt leaves. Claude Code, for example,
    always requests 32000 tokens."""


_ENGINE_FIELDS = {
    *("id", "harness", "source", "file", "quant", "vram_mb"),
    *("context", "parallel", "args", "env"),
}
"""Fields of a model config that change how its engine is started; the others only change where and when."""


class ModelConfig(Section):
    """[[models]]: how one model is served."""

    id: Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
    """Name that clients send, usually the Hugging Face id."""

    harness: str
    """Harness that runs it: embedded, llamacpp, mistralrs, ..., as named in neuron.toml on the nodes."""

    source: str | None = None
    """Location of the weights: a path on the nodes, or a Hugging Face repository. Default: the id."""

    file: str | None = None
    """File inside `source`, if it has more than one."""

    quant: str | None = None
    """Quantization, such as "Q4_K_M"."""

    vram_mb: Mib | None = None
    """Memory in MiB that it can use over all of its devices. Engines that size themselves, such as vLLM, are given this
    number; a measurement never changes it. It is also the memory that is reserved, until a load has been measured.
    Default: derived from the weights and the context."""

    min_devices: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of devices that one instance is split across."""

    max_devices: Annotated[int, Field(ge=1, le=64)] | None = None
    """Maximum number of devices to split across when it does not fit on `min_devices`. `min_devices` is doubled until
    it fits, which yields valid tensor-parallel sizes. Default: `min_devices`."""

    min_device_vram_mb: Mib = 0
    """Minimum total memory of a device in MiB; smaller devices are not considered."""

    device_kind: DeviceKind | None = None
    """Device kind to use, "cuda" or "cpu". Default: any, GPUs first."""

    min_compute_capability: Annotated[str, Field(pattern=r"^\d+\.\d+$")] | None = None
    """Minimum CUDA compute capability, such as "8.9"."""

    mixed_devices: bool = False
    """Allow splitting across GPUs of different models."""

    nodes: tuple[str, ...] = ()
    """Nodes that can run it; requests are sent to no other node, even if one reports the model. Default: all."""

    gpus: tuple[str, ...] = ()
    """GPUs that it can run on: "NODE/INDEX", "NODE/UUID" or "UUID". Default: all."""

    gpu_labels: dict[str, str] = Field(default_factory=dict)
    """Labels that its GPUs must have in their [[devices]] entry of neuron.toml."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that a node must have in its [[neurons]] entry, to run the model and to get requests for it."""

    context: Tokens | None = None
    """Context size in tokens: prompt and completion of one request. Default: the model's own."""

    parallel: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Number of requests that an instance processes at the same time. Default: the engine's own."""

    pinned_on: tuple[str, ...] = ()
    """Nodes on which it is never evicted."""

    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0
    """With `strategy = "priority"`, models with the lowest priority are evicted first."""

    ttl: Duration | None = None
    """Time without requests after which it is unloaded; 0 disables this. Default: `idle_ttl` of [eviction]."""

    preload: bool = False
    """Load it when the gateway starts, if memory is free."""

    replicas: Replicas = Replicas()
    """Number of instances."""

    max_waiting: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Maximum number of requests that wait for it to load; further requests are rejected with 429.
    Default: `max_waiting` of [placement]."""

    aliases: tuple[str, ...] = ()
    """Additional names that clients can use. Names with `*` or `?` are patterns, such as "claude-*"."""

    params: ParamsSection | None = None
    """Changes to requests before they are sent to the engine."""

    args: tuple[str, ...] = ()
    """Additional command-line arguments for the engine."""

    env: dict[str, str] = Field(default_factory=dict)
    """Additional environment variables for the engine."""

    @property
    def config_hash(self) -> str:
        """Hash of everything that an instance is started with, other than its devices."""
        content = self.model_dump_json(include=_ENGINE_FIELDS)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def node_refusal(self, node: str, labels: Mapping[str, str]) -> str | None:
        """Return why a node with these labels may not run the model, for people; None if it may."""
        if self.nodes and node not in self.nodes:
            return "not among the nodes of its model config"
        missing = [f"{k}={v}" for k, v in self.labels.items() if labels.get(k) != v]
        return f"the node has no label {missing[0]}" if missing else None

    def spec(
        self,
        devices: tuple[int, ...] = (),
        instance_id: str | None = None,
        *,
        reserve_mb: int | None = None,
    ) -> LoadSpec:
        """Return the load request to send to a node.

        Args:
            devices: indices on the node; empty lets the node choose.
            instance_id: id of the new instance.
            reserve_mb: MiB to reserve on each device, if measured in earlier loads.
        """
        device_count = max(self.min_devices, len(devices))
        vram_mb = None if self.vram_mb is None else -(-self.vram_mb // device_count)
        return LoadSpec(
            model_id=self.id,
            harness=self.harness,
            instance_id=instance_id,
            source=self.source,
            file=self.file,
            quant=self.quant,
            tensor_parallel=device_count,
            devices=devices,
            context=self.context,
            parallel=self.parallel,
            vram_mb=vram_mb,
            reserve_mb=reserve_mb,
            config=self.config_hash,
            args=self.args,
            env=self.env,
        )


class Catalogue(Section):
    """The whole models.toml."""

    models: tuple[ModelConfig, ...] = ()

    @field_validator("models")
    @classmethod
    def _require_unique_names(cls, models: tuple[ModelConfig, ...]) -> tuple[ModelConfig, ...]:
        owner: dict[str, str] = {}
        for model_config in models:
            for name in (model_config.id, *model_config.aliases):
                if name in owner:
                    raise ValueError(
                        f"{name!r} is the name of two models: {owner[name]!r} and {model_config.id!r}"
                    )
                owner[name] = model_config.id
        return models
