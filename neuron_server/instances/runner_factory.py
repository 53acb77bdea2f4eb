"""Creates the runner of an instance: with an engine process of its own, or inside an attached engine."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from cortex_common.clock import Clock
from cortex_common.schema.hardware import Device
from neuron_server.harness.base import AttachedHarness, ProcessHarness
from neuron_server.harness.keys import EngineKeys
from neuron_server.harness.registry import RegistryEntry
from neuron_server.instances.attached_runner import MAX_WATCH_INTERVAL_S, AttachedRunner
from neuron_server.instances.runner import EngineRunner
from neuron_server.instances.runner_protocol import Runner, RunnerHost
from neuron_server.instances.state_machine import Instance
from neuron_server.process.supervisor import Launch, Supervisor
from neuron_server.state_store import StateDir


def create_runner(
    instance: Instance,
    entry: RegistryEntry,
    devices: Iterable[Device],
    *,
    engine_host: str,
    keys: EngineKeys,
    state: StateDir,
    supervisor: Supervisor,
    host: RunnerHost,
    clock: Clock,
    weights_mb: int | None = None,
) -> Runner:
    """Return the runner of an instance, not started yet.

    Args:
        instance: the instance; an adopted one already has a stage.
        entry: its harness, with settings.
        devices: the node's devices.
        engine_host: address that engines listen on.
        keys: the engines' API keys.
        state: provides the engine's log.
        supervisor: starts engines.
        host: the runtime.
        clock: measures durations and provides timestamps.
        weights_mb: MiB of weights that a load reads; None if that is unknown.

    Raises:
        BadRequest: see `ProcessHarness.launch`.
        NotSupported: see `ProcessHarness.launch`.
    """
    harness = entry.harness
    if isinstance(harness, AttachedHarness):
        interval_s = min(entry.settings.health_interval_s, MAX_WATCH_INTERVAL_S)
        return AttachedRunner(instance.id, harness, host, clock, interval_s)
    assert isinstance(harness, ProcessHarness), "a harness is one or the other"
    own_devices = [device for device in devices if device.index in instance.devices]
    budgeted = instance.spec.model_copy(update={"vram_mb": instance.budget_mb})
    command = partial(harness.launch, budgeted, own_devices, engine_host)

    def launch(port: int) -> Launch:
        return keys.apply(command(port), instance.id, port)

    new = instance.stage is None
    if new:
        command(instance.port)  # raises now if the harness rejects the spec
    return EngineRunner(
        instance.id,
        harness=harness,
        settings=entry.settings,
        launch=launch,
        address=engine_host,
        engine_log=state.log(instance.id, instance.spec),
        supervisor=supervisor,
        host=host,
        clock=clock,
        weights_mb=weights_mb,
        probe_token=entry.probe_token,
    )
