"""What the data plane asks of whoever knows where requests can go."""

from __future__ import annotations

from typing import Protocol

from cortex_common.config.catalogue import ModelConfig
from cortex_common.errors import CortexError
from cortex_common.schema.instances import ModelId
from cortex_server.fleet.model_aliases import ModelAliases
from cortex_server.fleet.routing_table import Endpoint


class Routing(Protocol):
    """The fleet as a request sees it: `fleet.state.Fleet`, or what a worker process was told of it.

    Attributes:
        names: what clients may call models.
    """

    names: ModelAliases

    def ready(self, model: str) -> list[Endpoint]:
        """Instances of the model that take requests now; not to be changed by the caller."""
        ...

    def model_config(self, model: str) -> ModelConfig | None:
        """The profile of a model id."""
        ...

    def known(self, name: str) -> ModelId | None:
        """The model id that a client's name means: a profile, an alias, or whatever is loaded."""
        ...

    def unknown(self, name: str) -> CortexError:
        """The error for a name that means nothing here, with what it may have been meant to be."""
        ...

    def acquire(self, endpoint: Endpoint) -> None:
        """Count a request that starts on an instance."""
        ...

    def release(self, endpoint: Endpoint) -> None:
        """Count its end."""
        ...

    def answered(self, endpoint: Endpoint) -> None:
        """The instance did its work."""
        ...

    def failed(self, endpoint: Endpoint, reason: str) -> None:
        """The instance did not."""
        ...

    def untried(self, endpoint: Endpoint) -> None:
        """A request ended without a verdict on its instance, because its client left."""
        ...
