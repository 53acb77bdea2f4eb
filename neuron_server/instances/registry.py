"""The registry of a node's instances and their runners."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from cortex_common.errors import ModelNotFound, Unavailable, nearest_names
from cortex_common.schema.instances import InstanceId, InstanceState, LoadSpec
from neuron_server.harness.registry import RegistryEntry
from neuron_server.instances.runner_protocol import Runner
from neuron_server.instances.state_machine import Instance
from neuron_server.process.process_table import ProcessFinder
from neuron_server.state_store import EngineRecord


@dataclass(slots=True)
class Stop:
    """A stop of an instance that is under way.

    Attributes:
        deadline: when its requests have had enough time, in monotonic seconds.
        force: it is stopped then even if there are requests left.
        task: returns whether the instance was stopped.
    """

    deadline: float
    force: bool
    task: asyncio.Task[bool] | None = None

    def tighten(self, deadline: float, *, force: bool) -> None:
        """Apply a further request to stop the instance: the earlier deadline holds, and force remains."""
        self.deadline = min(self.deadline, deadline)
        self.force = self.force or force


@dataclass(slots=True)
class ManagedInstance:
    """An instance with its runner and harness.

    Attributes:
        instance: the current snapshot.
        runner: loads, watches and stops it.
        entry: its harness, with settings.
        saved: its record on disk, if there is one.
        stop: its stop, once requested.
    """

    instance: Instance
    runner: Runner
    entry: RegistryEntry
    saved: EngineRecord | None = None
    stop: Stop | None = None


class InstanceRegistry:
    """All instances of a node; iterates in the order in which they were added."""

    def __init__(self) -> None:
        self._by_id: dict[InstanceId, ManagedInstance] = {}

    def __iter__(self) -> Iterator[ManagedInstance]:
        return iter(tuple(self._by_id.values()))

    def __getitem__(self, instance: InstanceId) -> ManagedInstance:
        return self._by_id[instance]

    def add(self, managed: ManagedInstance) -> None:
        """Add an instance."""
        self._by_id[managed.instance.id] = managed

    def remove(self, instance: InstanceId) -> None:
        """Remove an instance, if present."""
        self._by_id.pop(instance, None)

    @property
    def snapshots(self) -> list[Instance]:
        """Current snapshots of all instances."""
        return [managed.instance for managed in self]

    @property
    def process_finders(self) -> dict[InstanceId, ProcessFinder]:
        """Functions that find the processes of each running engine of this node."""
        engines = ((managed.instance.id, managed.runner.engine) for managed in self)
        return {instance: engine.pids for instance, engine in engines if engine is not None}

    @property
    def ports(self) -> frozenset[int]:
        """Ports assigned to instances, whether or not an engine listens on them yet."""
        return frozenset(managed.instance.port for managed in self)

    def by_instance_id(self, instance_id: str) -> Instance:
        """Return the instance with an id.

        Raises:
            ModelNotFound: there is no such instance.
        """
        managed = self._by_id.get(InstanceId(instance_id))
        if managed is None:
            raise ModelNotFound(f"this node has no instance {instance_id!r}")
        return managed.instance

    def find(self, model_id: str, instance_id: str | None = None) -> list[ManagedInstance]:
        """Return the instances of a model, or only the one with the given id.

        Raises:
            ModelNotFound: no instance matches.
        """
        matches = [
            managed
            for managed in self
            if managed.instance.spec.model_id == model_id
            and instance_id in {None, managed.instance.id}
        ]
        if not matches:
            raise self._not_found(model_id, instance_id)
        return matches

    def ready_instances(self, model_id: str) -> list[Instance]:
        """Return the instances of a model that accept requests; at least one.

        Raises:
            ModelNotFound: the node has no instance of the model.
            Unavailable: no instance is ready.
        """
        matches = [managed.instance for managed in self.find(model_id)]
        ready = [instance for instance in matches if instance.state is InstanceState.READY]
        if not ready:
            states = ", ".join(sorted({str(instance.state) for instance in matches}))
            raise Unavailable(f"{model_id} is {states} on this node", retry_after=1.0)
        return ready

    def matching(self, spec: LoadSpec) -> list[Instance]:
        """Return the instances with a spec's model or instance id."""
        return [
            instance
            for instance in self.snapshots
            if instance.spec.model_id == spec.model_id or instance.id == spec.instance_id
        ]

    def _not_found(self, model_id: str, instance_id: str | None) -> ModelNotFound:
        names = {instance.spec.model_id for instance in self.snapshots}
        what = f"instance {instance_id!r} of {model_id!r}" if instance_id else f"model {model_id!r}"
        hints = [f"did you mean {name!r}?" for name in nearest_names(model_id, names)]
        return ModelNotFound(f"{what} is not loaded on this node", hints=hints, param="model_id")
