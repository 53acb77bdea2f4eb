"""The harness of the engine inside a wheel: see neuron_server.embedded_engine.worker."""

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
from neuron_server.harness.base import EngineCapabilities, Launch, Probe
from neuron_server.harness.probe import get_json
from neuron_server.harness.weights import gguf_file, size_mb
from neuron_server.process.program import missing_reason

_TRAITS = EngineTraits(parallel_tool_calls=False, effort_names=MISTRALRS.effort_names)
"""mistral.rs without its server: it spells efforts the same way, but has none of the extensions."""
_INTERPRETER_MB = 220
"""Resident memory of a worker before its weights: Python, the wheel, the HTTP server."""
_WORTH_THREADS_MB = 64
"""Smaller models compute on one thread: on a busy host, waiting for one another made two threads 10 to 40 times
slower than one (2 MB model, 1500 tokens, two cores: 0.5 s against 11 s)."""


class EmbeddedHarness:
    """mistral.rs on the host's processor, one worker process an instance. For CPU and small models.

    The published wheel computes on the CPU; it takes GGUF files.
    """

    def __init__(self, entry: HarnessEntry, http: httpx.AsyncClient) -> None:
        self.name = entry.name
        self.capabilities = EngineCapabilities(
            engine="embedded", traits=_TRAITS, kinds=(DeviceKind.CPU,)
        )
        self._env = entry.env
        self._http = http

    @property
    def program(self) -> str | None:
        """The wheel is no program of its own."""
        return None

    @property
    def missing(self) -> str | None:
        """The wheel."""
        return missing_reason(_require_wheel)

    async def prepare(self) -> None:
        """Nothing to look at."""

    async def without_gpu(self) -> str | None:
        """It is for the processor."""
        return None

    def served_as(self, spec: LoadSpec) -> str | None:  # noqa: ARG002 - the protocol's
        """Under its own name."""
        return None

    def weights_mb(self, spec: LoadSpec) -> int | None:
        """See `Harness.weights_mb`."""
        return size_mb(gguf_file(spec))

    async def estimate_mb(self, spec: LoadSpec, kind: DeviceKind) -> int | None:  # noqa: ARG002 - the protocol's
        """Weights are held twice for a moment while they are read."""
        return _INTERPRETER_MB + size_mb(gguf_file(spec)) * 5 // 4

    def launch(self, spec: LoadSpec, devices: Sequence[Device], host: str, port: int) -> Launch:  # noqa: ARG002 - the protocol's
        """See `Harness.launch`."""
        _require_wheel()
        argv = [sys.executable, "-m", "neuron_server.embedded_engine.worker"]
        argv += ["--model", str(gguf_file(spec)), "--name", spec.model_id]
        argv += ["--host", host, "--port", str(port)]
        if spec.context is not None:
            argv += ["--context", str(spec.context)]
        if spec.parallel is not None:
            argv += ["--parallel", str(spec.parallel)]
        environment = {"PYTHONUNBUFFERED": "1"}
        if size_mb(gguf_file(spec)) < _WORTH_THREADS_MB:
            environment["RAYON_NUM_THREADS"] = "1"
        return Launch(argv=(*argv, *spec.args), env=environment | self._env | spec.env)

    async def probe(self, spec: LoadSpec, url: str) -> Probe:  # noqa: ARG002 - the protocol's
        """The worker listens once it is ready."""
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
        """The worker counts them itself."""
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
