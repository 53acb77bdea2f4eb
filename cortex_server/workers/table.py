"""A worker's picture of the fleet: the routing table, as the control process tells it.

Whether an instance takes requests is decided there, from the verdicts of all workers. What a worker does by itself is
to count its own requests, and to send an instance on trial one request alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cortex_common.config.catalogue import Catalogue, ModelConfig
from cortex_common.errors import CortexError
from cortex_common.schema.instances import InstanceId, ModelId
from cortex_server.dialects.engine_traits import traits_of
from cortex_server.fleet.model_aliases import ModelAliases
from cortex_server.fleet.routing_table import Endpoint, labels_of
from cortex_server.metrics.series import Metrics
from cortex_server.workers.wire import Channel, Spec, ToWorker, Verdict

_NOBODY: list[Endpoint] = []


@dataclass(slots=True, eq=False)
class SharedTarget(Endpoint):
    """A target that other workers send requests to as well: `in_flight` counts all of them.

    Attributes:
        number: by which the control process knows it.
        mine: requests of this worker on it.
        most: the most of them since the last report.
        trial: one request is to try it.
        suspect: the control process wants to hear of its next success.
    """

    number: int = 0
    mine: int = 0
    most: int = 0
    trial: bool = False
    suspect: bool = False


class Table:
    """See the module; this is the data plane's `Routing`.

    Args:
        channel: to the control process.
        metrics: of this worker.

    Attributes:
        touched: targets whose requests have changed since the last report.
        on_touch: called when one is.
    """

    def __init__(self, channel: Channel[ToWorker], metrics: Metrics) -> None:
        self.names = ModelAliases(())
        self.touched: set[SharedTarget] = set()
        self.on_touch: Callable[[], None] = lambda: None
        self._channel = channel
        self._metrics = metrics
        self._model_configs: dict[str, ModelConfig] = {}
        self._endpoints: dict[int, SharedTarget] = {}
        self._of_model: dict[str, list[SharedTarget]] = {}
        self._ready: dict[str, list[Endpoint]] = {}

    # -- what the control process tells --------------------------------------------------------

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Replace the profiles."""
        self._model_configs = {model_config.id: model_config for model_config in catalogue.models}
        self.names = ModelAliases(catalogue.models)

    def use(self, models: Mapping[str, Iterable[Spec]]) -> None:
        """Replace the rows of these models."""
        for model, specs in models.items():
            before = self._of_model.pop(model, [])
            now = [self._endpoint(spec) for spec in specs]
            for gone in set(before) - set(now):
                del self._endpoints[gone.number]
            if now:
                self._of_model[model] = now
            self._ready[model] = [t for t in now if not t.draining]
            if not self._ready[model]:
                del self._ready[model]

    def use_busy(self, busy: Mapping[int, int]) -> None:
        """Learn what the other workers have on targets."""
        for number, others in busy.items():
            if (endpoint := self._endpoints.get(number)) is not None:
                endpoint.in_flight = endpoint.mine + others

    def _endpoint(self, spec: Spec) -> SharedTarget:
        endpoint = self._endpoints.get(spec.number)
        if endpoint is None:
            endpoint = self._endpoints[spec.number] = SharedTarget(
                id=InstanceId(spec.id),
                model=ModelId(spec.model),
                node=spec.node,
                url=spec.url,
                slots=spec.slots,
                series=self._metrics.series(spec.model, spec.node),
                engine=spec.engine,
                context=spec.context,
                traits=traits_of(spec.engine),
                labels=labels_of(spec.node, spec.id),
                last_used=0.0,
                served_as=spec.served_as,
                retries=spec.retries,
                overflow=spec.overflow,
                number=spec.number,
            )
        endpoint.draining, endpoint.trial, endpoint.suspect = (
            not spec.usable,
            spec.trial,
            spec.suspect,
        )
        return endpoint

    # -- `Routing` -----------------------------------------------------------------------------

    def ready(self, model: str) -> list[Endpoint]:
        """See `Routing`."""
        return self._ready.get(model, _NOBODY)

    def model_config(self, model: str) -> ModelConfig | None:
        """See `Routing`."""
        return self._model_configs.get(model)

    def known(self, name: str) -> ModelId | None:
        """See `Routing`."""
        found = self.names.resolve(name)
        if found is None and name in self._of_model:
            return ModelId(name)
        return found

    def unknown(self, name: str) -> CortexError:
        """See `Routing`."""
        return self.names.not_found(name, self._of_model)

    def acquire(self, endpoint: Endpoint) -> None:
        """See `Routing`."""
        assert isinstance(endpoint, SharedTarget)
        endpoint.in_flight += 1
        endpoint.mine += 1
        endpoint.most = max(endpoint.most, endpoint.mine)
        self.touched.add(endpoint)
        self.on_touch()
        if endpoint.trial:
            self._ready[endpoint.model] = [
                t for t in self.ready(endpoint.model) if t is not endpoint
            ]

    def release(self, endpoint: Endpoint) -> None:
        """See `Routing`."""
        assert isinstance(endpoint, SharedTarget)
        endpoint.in_flight -= 1
        endpoint.mine -= 1
        self.touched.add(endpoint)
        self.on_touch()

    def answered(self, endpoint: Endpoint) -> None:
        """See `Routing`."""
        assert isinstance(endpoint, SharedTarget)
        if endpoint.suspect:
            endpoint.suspect = False
            self._channel.send(Verdict(endpoint.number, None))

    def failed(self, endpoint: Endpoint, reason: str) -> None:
        """See `Routing`."""
        assert isinstance(endpoint, SharedTarget)
        endpoint.suspect = True
        self._channel.send(Verdict(endpoint.number, reason))

    def untried(self, endpoint: Endpoint) -> None:
        """See `Routing`."""
        assert isinstance(endpoint, SharedTarget)
        ready = self._ready.setdefault(endpoint.model, [])
        if endpoint.trial and not endpoint.draining and endpoint not in ready:
            ready.append(endpoint)
