"""What the proxy needs from the controller, as protocols: the proxy must not import the lifecycle."""

from __future__ import annotations

from typing import Protocol

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.instances import InstanceId, ModelId


class Progress(Protocol):
    """Progress of a load that requests are waiting for."""

    @property
    def state(self) -> str:
        """Current step, in one word."""
        ...

    @property
    def node(self) -> str | None:
        """Node that the model is being loaded on, once chosen."""
        ...

    @property
    def position(self) -> int:
        """Position in the load queue; 1 is the head."""
        ...

    @property
    def eta_s(self) -> float | None:
        """Seconds until the instance is ready, estimated from past loads."""
        ...

    @property
    def why(self) -> str | None:
        """What blocks the load from starting, as text for people."""
        ...


class Loads(Protocol):
    """Loads models on demand; implemented by the controller."""

    async def acquire(
        self, model_config: ModelConfig, *, request_id: str, timeout_s: float
    ) -> InstanceId:
        """Wait until an instance of the model is ready; cancelling stops waiting.

        Raises:
            CortexError: The load failed or timed out.
        """
        ...

    def progress(self, model_id: ModelId) -> Progress | None:
        """Return the progress of the model's load, or None when nothing is being loaded."""
        ...
