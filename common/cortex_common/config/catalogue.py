"""models.toml: the profiles, that is, how each model is served."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from cortex_common.config.section import Section
from cortex_common.models import LoadSpec


class ModelProfile(Section):
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

    min_device_vram_mb: Annotated[int, Field(ge=0)] = 0
    """Smallest total VRAM in MiB that a device must have to be considered."""

    context: Annotated[int, Field(ge=1)] | None = None
    """Tokens a request may use, prompt and answer. Default: the model's own."""

    parallel: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Requests computed side by side. Default: the engine's."""

    pinned_on: tuple[str, ...] = ()
    """Nodes on which it is never evicted."""

    aliases: tuple[str, ...] = ()
    """Other names under which clients may ask for it."""

    args: tuple[str, ...] = ()
    """Further arguments for the engine's command line."""

    env: dict[str, str] = Field(default_factory=dict)
    """Further environment variables for the engine."""

    def spec(self, devices: tuple[int, ...] = (), instance_id: str | None = None) -> LoadSpec:
        """What a node is asked to load."""
        return LoadSpec(
            model_id=self.id,
            harness=self.harness,
            instance_id=instance_id,
            source=self.source,
            file=self.file,
            quant=self.quant,
            tensor_parallel=max(self.min_devices, len(devices)),
            devices=devices,
            context=self.context,
            parallel=self.parallel,
            vram_mb=None if self.vram_mb is None else -(-self.vram_mb // self.min_devices),
            args=self.args,
            env=self.env,
        )


class Catalogue(Section):
    """All of models.toml."""

    models: tuple[ModelProfile, ...] = ()

    @field_validator("models")
    @classmethod
    def _names_differ(cls, models: tuple[ModelProfile, ...]) -> tuple[ModelProfile, ...]:
        owner: dict[str, str] = {}
        for profile in models:
            for name in (profile.id, *profile.aliases):
                if name in owner:
                    raise ValueError(
                        f"{name!r} names two models: {owner[name]!r} and {profile.id!r}"
                    )
                owner[name] = profile.id
        return models
