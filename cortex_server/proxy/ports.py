"""What the proxy needs from the controller and from tracing, as protocols: it must not import the lifecycle."""

from __future__ import annotations

from typing import Protocol

from cortex_common.config.catalogue import ModelConfig
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_server.proxy.access_log import RequestLine
from cortex_server.proxy.trace_context import Span


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
    def reason(self) -> str | None:
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


class Spans(Protocol):
    """Exports the spans of finished requests."""

    def ended(self, span: Span, line: RequestLine, started: float, now: float) -> None:
        """Export a finished request.

        Args:
            span: Ids of its spans.
            line: Its access log line.
            started: When it began, by the event loop's time.
            now: The event loop's time.
        """
        ...

    def close(self) -> None:
        """Send the last spans; blocks."""
        ...
