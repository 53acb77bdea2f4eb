"""The instances that a node holds, each with what runs it, found by what callers know of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from cortex_common.errors import ModelNotFound, Unavailable, nearest
from cortex_common.schema.instances import InstanceId, InstanceState, LoadSpec
from neuron_server.harness.registry import Registered
from neuron_server.instances.runner import Runner
from neuron_server.instances.state_machine import Instance
from neuron_server.process.process_table import TreeOf
from neuron_server.state_store import EngineRecord


@dataclass(slots=True)
class ManagedInstance:
    """An instance with what runs it.

    Attributes:
        saved: its record on disk, where there is one.
        stopping: ends it, once somebody asked for that; tells whether it did.
    """

    instance: Instance
    runner: Runner
    registered: Registered
    saved: EngineRecord | None = None
    stopping: asyncio.Task[bool] | None = None


class InstanceRegistry:
    """All that a node holds; iterates in the order in which it came."""

    def __init__(self) -> None:
        self._by_id: dict[InstanceId, ManagedInstance] = {}

    def __iter__(self) -> Iterator[ManagedInstance]:
        return iter(tuple(self._by_id.values()))

    def __getitem__(self, instance: InstanceId) -> ManagedInstance:
        return self._by_id[instance]

    def add(self, managed: ManagedInstance) -> None:
        """Hold it from now on."""
        self._by_id[managed.instance.id] = managed

    def drop(self, instance: InstanceId) -> None:
        """Hold it no longer."""
        self._by_id.pop(instance, None)

    @property
    def instances(self) -> list[Instance]:
        """All instances."""
        return [managed.instance for managed in self]

    @property
    def trees(self) -> dict[InstanceId, TreeOf]:
        """What finds the processes of each engine that is ours and runs."""
        engines = ((managed.instance.id, managed.runner.engine) for managed in self)
        return {instance: engine.pids for instance, engine in engines if engine is not None}

    @property
    def ports(self) -> frozenset[int]:
        """Ports that are given away, whether or not an engine listens there yet."""
        return frozenset(managed.instance.port for managed in self)

    def called(self, instance_id: str) -> Instance:
        """The instance of that id.

        Raises:
            ModelNotFound: there is none.
        """
        managed = self._by_id.get(InstanceId(instance_id))
        if managed is None:
            raise ModelNotFound(f"this node has no instance {instance_id!r}")
        return managed.instance

    def of_model(self, model_id: str, instance_id: str | None = None) -> list[ManagedInstance]:
        """The instances of a model, or only the one that is named.

        Raises:
            ModelNotFound: nothing of that name is here.
        """
        found = [
            managed
            for managed in self
            if managed.instance.spec.model_id == model_id
            and instance_id in {None, managed.instance.id}
        ]
        if not found:
            raise self._unknown(model_id, instance_id)
        return found

    def ready(self, model_id: str) -> list[Instance]:
        """The instances of a model that take requests; there is one at least.

        Raises:
            ModelNotFound: nothing of that name is here.
            Unavailable: it is here, but not ready.
        """
        found = [managed.instance for managed in self.of_model(model_id)]
        ready = [instance for instance in found if instance.state is InstanceState.READY]
        if not ready:
            states = ", ".join(sorted({str(instance.state) for instance in found}))
            raise Unavailable(f"{model_id} is {states} on this node", retry_after=1.0)
        return ready

    def related(self, spec: LoadSpec) -> list[Instance]:
        """The instances that a load may turn out to mean: of its model, or of its instance id."""
        return [
            instance
            for instance in self.instances
            if instance.spec.model_id == spec.model_id or instance.id == spec.instance_id
        ]

    def _unknown(self, model_id: str, instance_id: str | None) -> ModelNotFound:
        names = {instance.spec.model_id for instance in self.instances}
        what = f"no instance {instance_id!r} of {model_id!r}" if instance_id else f"no {model_id!r}"
        hints = [f"did you mean {name!r}?" for name in nearest(model_id, names)]
        return ModelNotFound(f"this node has {what} loaded", hints=hints, param="model_id")
