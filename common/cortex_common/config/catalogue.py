"""models.toml: the profiles, that is, how each model is served."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from cortex_common.config.base import Section
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import LoadSpec
from cortex_common.units import DURATION_PATTERN, parse_duration


def _seconds(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


_WRITTEN: dict[str, Any] = {
    "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": DURATION_PATTERN}]
}

Duration = Annotated[
    float, BeforeValidator(_seconds), Field(ge=0), WithJsonSchema(_WRITTEN, mode="validation")
]
"""Seconds, written as a number or as a text like "90s", "10m" or "1h30m"."""


class Replicas(Section):
    """[models.replicas]: how many instances of a model the fleet may run."""

    min: Annotated[int, Field(ge=0)] = 0
    """Instances that are kept loaded; eviction leaves this many. After an operator's unload there is none until
    somebody asks for the model again, or another gateway that keeps it loaded, or a restarted one, misses it."""

    max: Annotated[int, Field(ge=1)] = 1
    """Instances that may run side by side. A further one is started when requests queue and room is free."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is more than max ({self.max})")
        return self


class ParamsSection(Section):
    """[models.params]: what is changed in requests for chats and completions before the model's engine sees them."""

    defaults: dict[str, Any] = Field(default_factory=dict)
    """Fields for requests that lack them, such as {temperature = 0.6}."""

    overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields that replace what the client sent."""

    strip: tuple[str, ...] = ()
    """Fields that the engine does not bear."""

    clamp_max_tokens: bool = False
    """Cut the length that the client asks for to what `context` leaves after the prompt. Claude Code always asks for
    32000 tokens."""


class ModelConfig(Section):
    """[[models]]: how one model is served."""

    id: Annotated[str, Field(min_length=1, max_length=512)]
    """The name that clients send, usually the Hugging Face id."""

    harness: str
    """Which engine runs it: embedded, llamacpp, mistralrs, ... as named in the nodes' neuron.toml."""

    source: str | None = None
    """Where its weights are: a path on the nodes or a Hugging Face repository. Default: the id."""

    file: str | None = None
    """The file inside `source`, where there are several."""

    quant: str | None = None
    """Quantisation, such as "Q4_K_M"."""

    vram_mb: Annotated[int, Field(ge=0)] | None = None
    """First guess of the MiB it needs over all its devices; measured loads replace it.
    Default: from the size of the weights."""

    min_devices: Annotated[int, Field(ge=1, le=64)] = 1
    """How many devices it is spread over."""

    max_devices: Annotated[int, Field(ge=1, le=64)] | None = None
    """Most devices it may be spread over where `min_devices` of them have no room; tried in doublings of
    `min_devices`, which are the tensor-parallel sizes that divide. Default: `min_devices`."""

    min_device_vram_mb: Annotated[int, Field(ge=0)] = 0
    """Smallest total VRAM in MiB that a device must have to be considered."""

    device_kind: DeviceKind | None = None
    """Only devices of this kind, "cuda" or "cpu". Default: any, GPUs first."""

    min_compute_capability: Annotated[str, Field(pattern=r"^\d+\.\d+$")] | None = None
    """Least CUDA compute capability, such as "8.9"."""

    mixed_devices: bool = False
    """Allow cards of different types to share it."""

    nodes: tuple[str, ...] = ()
    """Nodes that may run it. Default: all."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that a node must have, as given in its [[neurons]] entry."""

    context: Annotated[int, Field(ge=1)] | None = None
    """Tokens a request may use, prompt and answer. Default: the model's own."""

    parallel: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Requests computed side by side. Default: the engine's."""

    pinned_on: tuple[str, ...] = ()
    """Nodes on which it is never evicted."""

    priority: int = 0
    """Under the "priority" strategy the lowest is evicted first."""

    ttl: Duration | None = None
    """Seconds without a request after which it is unloaded; 0 never. Default: [eviction] idle_ttl."""

    preload: bool = False
    """Load it when the gateway starts, where there is room."""

    replicas: Replicas = Replicas()
    """How many instances may run."""

    max_waiting: Annotated[int, Field(ge=1)] | None = None
    """Requests that may wait for it to load; further ones get 429. Default: [placement] max_waiting."""

    aliases: tuple[str, ...] = ()
    """Other names under which clients may ask for it; with `*` and `?` a pattern, such as "claude-*"."""

    params: ParamsSection | None = None
    """What is changed in requests before the engine sees them."""

    args: tuple[str, ...] = ()
    """Further arguments for the engine's command line."""

    env: dict[str, str] = Field(default_factory=dict)
    """Further environment variables for the engine."""

    def spec(
        self,
        devices: tuple[int, ...] = (),
        instance_id: str | None = None,
        *,
        device_mb: int | None = None,
    ) -> LoadSpec:
        """What a node is asked to load.

        Args:
            devices: indices on the node; empty lets the node choose.
            instance_id: what the instance is to be called.
            device_mb: MiB that each device must have; None takes `vram_mb`, shared evenly.
        """
        shared = max(self.min_devices, len(devices))
        if device_mb is None and self.vram_mb is not None:
            device_mb = -(-self.vram_mb // shared)
        return LoadSpec(
            model_id=self.id,
            harness=self.harness,
            instance_id=instance_id,
            source=self.source,
            file=self.file,
            quant=self.quant,
            tensor_parallel=shared,
            devices=devices,
            context=self.context,
            parallel=self.parallel,
            vram_mb=device_mb,
            args=self.args,
            env=self.env,
        )


class Catalogue(Section):
    """All of models.toml."""

    models: tuple[ModelConfig, ...] = ()

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[ModelConfig, ...]) -> tuple[ModelConfig, ...]:
        owner: dict[str, str] = {}
        for model_config in models:
            for name in (model_config.id, *model_config.aliases):
                if name in owner:
                    raise ValueError(
                        f"{name!r} names two models: {owner[name]!r} and {model_config.id!r}"
                    )
                owner[name] = model_config.id
        return models
