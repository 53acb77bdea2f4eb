"""Which life an instance leads: with an engine of its own, or inside one that someone else runs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from cortex_common.clock import Clock
from cortex_common.schema.hardware import Device
from neuron_server.harness.base import AttachedHarness, ProcessHarness
from neuron_server.harness.registry import Registered
from neuron_server.instances.attached_runner import MOST_WATCH_S, AttachedRunner
from neuron_server.instances.runner import EngineRunner, Runner, RunnerHost
from neuron_server.instances.state_machine import Instance
from neuron_server.process.supervisor import Supervisor
from neuron_server.state_store import StateDir


def runner_for(
    instance: Instance,
    registered: Registered,
    devices: Iterable[Device],
    *,
    engine_host: str,
    state: StateDir,
    supervisor: Supervisor,
    ledger: RunnerHost,
    clock: Clock,
) -> Runner:
    """The life of an instance, not begun yet.

    Args:
        instance: whose; one that is adopted has a stage already.
        registered: its harness.
        devices: of the node.
        engine_host: address that engines listen on.
        state: where logs are kept.
        supervisor: starts engines.
        ledger: the runtime.
        clock: for durations and times.

    Raises:
        BadRequest: see `ProcessHarness.launch`.
        NotSupported: the same.
    """
    harness = registered.harness
    if isinstance(harness, AttachedHarness):
        watch_s = min(registered.entry.health_every_s, MOST_WATCH_S)
        return AttachedRunner(instance.id, harness, ledger, clock, watch_s)
    assert isinstance(harness, ProcessHarness), "there are two sorts of harness"
    own = [device for device in devices if device.index in instance.devices]
    promised = instance.spec.model_copy(update={"vram_mb": instance.granted_mb})
    launch = partial(harness.launch, promised, own, engine_host)
    new = instance.stage is None
    if new:
        launch(instance.port)  # what the harness refuses is refused now
    return EngineRunner(
        instance.id,
        harness=harness,
        entry=registered.entry,
        launch=launch,
        host=engine_host,
        engine_log=state.log(instance.id),
        supervisor=supervisor,
        ledger=ledger,
        clock=clock,
        weights_mb=harness.weights_mb(instance.spec) if new else None,
    )
