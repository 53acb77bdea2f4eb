"""The harness of the embedded engine: see `neuron_server.embedded_engine.worker`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

import httpx

from cortex_common.config.neuron import HarnessEntry
from cortex_common.errors import NotSupported
from cortex_common.schema.engine_traits import MISTRALRS, EngineTraits
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.embedded_engine.key_check import KEY_VARIABLE
from neuron_server.harness.base import EngineCapabilities, MemoryEstimate, Probe
from neuron_server.harness.keys import KEY_FIELD
from neuron_server.harness.probe import get_json
from neuron_server.process.program import not_supported_message
from neuron_server.process.supervisor import Launch
from neuron_server.weights.files import gguf_file, size_mb

_TRAITS = EngineTraits(parallel_tool_calls=False, effort_names=MISTRALRS.effort_names)
"""mistral.rs without its server: the names of reasoning efforts are the same, but no extensions are supported."""
_INTERPRETER_MB = 220
"""Resident memory of a worker before its weights: Python, the wheel, the HTTP server."""
_MIN_MULTITHREADED_MB = 64
"""Smaller models use one thread: on a busy host, two threads that waited for each other were 10 to 40 times slower than
one (2 MB model, 1500 tokens, two cores: 11 s instead of 0.5 s)."""


class EmbeddedHarness:
    """mistral.rs on the host's CPU with a worker process per instance, for small models.

    The published wheel supports only the CPU, and loads GGUF files.
    """

    def __init__(self, entry: HarnessEntry, http: httpx.AsyncClient) -> None:
        self.name = entry.name
        self.capabilities = EngineCapabilities(
            engine="embedded", traits=_TRAITS, kinds=(DeviceKind.CPU,), takes_key=True
        )
        self._env = entry.env
        self._http = http

    @property
    def program(self) -> str | None:
        """None: the engine is a Python package."""
        return None

    @property
    def missing_reason(self) -> str | None:
        """That the package is not installed; None if it is."""
        return not_supported_message(_require_wheel)

    async def prepare(self) -> None:
        """Do nothing: there is no program to inspect."""

    async def cpu_only_reason(self) -> str | None:
        """Return None: the engine is meant for the CPU."""
        return None

    def served_as(self, spec: LoadSpec) -> str | None:  # noqa: ARG002 - required by the protocol
        """Return None: the worker serves the model under its name."""
        return None

    def weights_mb(self, spec: LoadSpec) -> int | None:
        """Return the MiB of the GGUF file."""
        return size_mb(gguf_file(spec))

    async def estimate(
        self,
        spec: LoadSpec,
        kind: DeviceKind,  # noqa: ARG002 - required by the protocol
        devices: Sequence[Device],  # noqa: ARG002 - required by the protocol
    ) -> MemoryEstimate | None:
        """Return the weights, part of which is held twice while they are read, plus the interpreter's memory."""
        return MemoryEstimate(_INTERPRETER_MB + size_mb(gguf_file(spec)) * 5 // 4)

    def launch(self, spec: LoadSpec, devices: Sequence[Device], host: str, port: int) -> Launch:  # noqa: ARG002 - required by the protocol
        """Return the command of a worker."""
        _require_wheel()
        argv = [sys.executable, "-m", "neuron_server.embedded_engine.worker"]
        argv += ["--model", str(gguf_file(spec)), "--name", spec.model_id]
        argv += ["--host", host, "--port", str(port)]
        if spec.context is not None:
            argv += ["--context", str(spec.context)]
        if spec.parallel is not None:
            argv += ["--parallel", str(spec.parallel)]
        environment = {"PYTHONUNBUFFERED": "1", KEY_VARIABLE: KEY_FIELD}
        if size_mb(gguf_file(spec)) < _MIN_MULTITHREADED_MB:
            environment["RAYON_NUM_THREADS"] = "1"
        return Launch(argv=(*argv, *spec.args), env=environment | self._env | spec.env)

    async def probe(self, spec: LoadSpec, url: str) -> Probe:  # noqa: ARG002 - required by the protocol
        """Probe the worker, which listens once it is ready."""
        health = await get_json(self._http, url + "/health")
        if health is None:
            return Probe(ready=False, stage="loading")
        return Probe(
            ready=True,
            context=health.get("context"),
            parallel=health.get("parallel"),
            version=f"mistralrs {health.get('version')} (wheel)",
        )

    async def in_flight(self, url: str) -> int | None:
        """Return the running and waiting requests that the worker reports."""
        health = await get_json(self._http, url + "/health")
        return None if health is None else int(health["running"]) + int(health["waiting"])


def _require_wheel() -> None:
    if importlib.util.find_spec("mistralrs") is None:
        raise NotSupported(
            "the embedded engine is not installed on this node",
            hints=(
                "pip install 'cortex-gpu[engine]', or on Fedora: dnf install neuron-engine-embedded",
            ),
        )
