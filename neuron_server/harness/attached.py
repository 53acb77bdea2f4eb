"""The harness of an attached mistral.rs server, which works around the bugs of its unload and reload API.

mistral.rs 0.8 and 0.9: management calls always answer 200, with the result in the JSON status; a reload of a model that
is not exactly "unloaded" leaves it in "reloading" forever, until a restart; an unload drops requests in flight. 0.8
with several models answers an unload with "no_loader_config" and has lost the model until a restart.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence

import httpx

from cortex_common.config.neuron import HarnessEntry
from cortex_common.errors import (
    BadRequest,
    LoadFailed,
    NotSupported,
    UpstreamFailed,
    nearest_names,
)
from cortex_common.schema.hardware import Device, DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.harness.base import LoadCycles, MemoryEstimate, Probe
from neuron_server.harness.command import sum_series
from neuron_server.harness.mistralrs import CAPABILITIES, fetch_version, parse_models, started_at
from neuron_server.harness.probe import get, get_json

_POLL_INTERVAL_S = 0.25
_RELOAD_TIMEOUT_S = 1800.0
_SYSTEMCTL_TIMEOUT_S = 120.0
_INFLIGHT_METRICS = ("mistralrs_sequences_running", "mistralrs_sequences_waiting")


class AttachHarness:
    """Loads and unloads models that a running engine was configured with."""

    def __init__(self, entry: HarnessEntry, http: httpx.AsyncClient) -> None:
        assert entry.url is not None  # checked when neuron.toml is read
        self.name = entry.name
        self.capabilities = CAPABILITIES
        self.url = entry.url
        self.load_cycles = LoadCycles()
        self._unit = entry.unit
        self._timeout_s = entry.load_timeout_s or _RELOAD_TIMEOUT_S
        self._http = http
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._restarting = asyncio.Lock()
        self._lost: set[str] = set()

    @property
    def program(self) -> str | None:
        """None: the neuron does not start the engine."""
        return None

    @property
    def missing_reason(self) -> str | None:
        """None: nothing of the engine needs to be installed here."""
        return None

    @property
    def restartable(self) -> bool:
        """Whether its systemd unit is configured."""
        return self._unit is not None

    async def prepare(self) -> None:
        """Do nothing: there is no program to inspect."""

    async def cpu_only_reason(self) -> str | None:
        """Return None: the engine's devices are configured elsewhere."""
        return None

    def served_as(self, spec: LoadSpec) -> str | None:
        """Return the engine's name for the model, given as `source`, if it differs from the model's."""
        return spec.source if spec.source not in {None, spec.model_id} else None

    def weights_mb(self, spec: LoadSpec) -> int | None:  # noqa: ARG002 - required by the protocol
        """Return None: the weights can be anywhere."""
        return None

    async def estimate(
        self,
        spec: LoadSpec,  # noqa: ARG002 - required by the protocol
        kind: DeviceKind,  # noqa: ARG002 - required by the protocol
        devices: Sequence[Device],  # noqa: ARG002 - required by the protocol
    ) -> MemoryEstimate | None:
        """Return 0: the engine manages its memory independently of the ledger."""
        return MemoryEstimate(0)

    async def in_flight(self, url: str) -> int | None:
        """Return the requests of the whole engine, which does not report them by model."""
        response = await get(self._http, url + "/metrics")
        if response is None or response.status_code != 200:
            return None
        return sum_series(response.text, _INFLIGHT_METRICS)

    async def list_models(self) -> Mapping[str, bool] | None:
        """Return the engine's models and whether each is loaded; None if it can't be reached."""
        listed = await get_json(self._http, self.url + "/v1/models")
        if listed is None:
            return None
        self.load_cycles = self.load_cycles.observed(started_at(listed))
        return parse_models(listed)

    async def restart(self) -> Mapping[str, bool]:
        """Restart the engine's systemd unit, and return the models and whether each is loaded."""
        await self._restart("a restart was requested")
        return await self.list_models() or {}

    async def load(self, spec: LoadSpec) -> Probe:
        """Load a model; one that is stuck in "reloading" or was lost is recovered by a restart, if possible."""
        name = spec.source or spec.model_id
        await self._wait_for_restart()
        async with self._locks[name]:
            if await self.list_models() is None:
                await self._systemctl("start", f"the engine at {self.url} does not respond")
                await self._wait_until_reachable()
            status = await self._wait_for_status(name)
            if status == "reloading":
                await self._restart(f"{name} is stuck in reloading")
                status = await self._wait_for_status(name)
            elif status == "not_found" and name in self._lost:
                await self._recover(name)
                status = await self._wait_for_status(name)
            if status == "unloaded":
                await self._reload(name)
            elif status != "loaded":
                configured = tuple(await self.list_models() or ())
                raise BadRequest(
                    f"the engine at {self.url} was not configured with {name!r}",
                    param="source",
                    hints=(
                        *(f"did you mean {n!r}?" for n in nearest_names(name, configured)),
                        "mistral.rs can't add models at run time: add it to its startup configuration",
                    ),
                )
        return Probe(ready=True, version=await fetch_version(self._http, self.url))

    async def unload(self, spec: LoadSpec) -> None:
        """Unload a model, unless it is not loaded."""
        name = spec.source or spec.model_id
        await self._wait_for_restart()
        async with self._locks[name]:
            if await self._status(name) != "loaded":
                return
            answer = await self._manage("unload", name)
            if answer.get("status") == "no_loader_config":
                self._lost.add(name)
            elif answer.get("status") != "unloaded":
                raise UpstreamFailed(
                    f"the engine did not unload {name}: {answer.get('error') or answer.get('status')}"
                )
            self.load_cycles = self.load_cycles.incremented()

    async def _recover(self, name: str) -> None:
        """Restart the engine to recover a lost model, unless other models are loaded."""
        if True in (await self.list_models() or {}).values():
            raise LoadFailed(
                f"the engine lost {name} when it unloaded it, and only a restart recovers it",
                hints=(f"POST /harnesses/{self.name}/restart, when its other models are idle",),
            )
        await self._restart(f"{name} was lost when it was unloaded")

    async def _restart(self, reason: str) -> None:
        async with self._restarting:
            await self._systemctl("restart", reason)
            await self._wait_until_reachable()
            self.load_cycles = LoadCycles(self.load_cycles.started)
            self._lost.clear()

    async def _wait_for_restart(self) -> None:
        """Wait until a restart in progress has finished."""
        async with self._restarting:
            pass

    async def _reload(self, name: str) -> None:
        answer = await self._manage("reload", name, timeout_s=self._timeout_s)
        if answer.get("status") != "loaded":
            reason = answer.get("error") or answer.get("status")
            raise LoadFailed(f"the engine could not load {name}: {reason}")
        self.load_cycles = self.load_cycles.incremented()

    async def _wait_for_status(self, name: str) -> str:
        """Return a model's status once it is no longer "reloading", or "reloading" after a timeout."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        while True:
            status = await self._status(name)
            if status != "reloading" or loop.time() > deadline:
                return status
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def _status(self, name: str) -> str:
        return str((await self._manage("status", name)).get("status"))

    async def _manage(
        self, operation: str, name: str, timeout_s: float = 10.0
    ) -> dict[str, object]:
        url = f"{self.url}/v1/models/{operation}"
        try:
            response = await self._http.post(url, json={"model_id": name}, timeout=timeout_s)
            answer = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise UpstreamFailed(
                f"the engine at {self.url} did not answer {operation}: {error!r}"
            ) from error
        return answer if isinstance(answer, dict) else {}

    async def _wait_until_reachable(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        while await self.list_models() is None:
            if asyncio.get_running_loop().time() > deadline:
                raise LoadFailed(f"the engine at {self.url} did not become reachable")
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def _systemctl(self, verb: str, reason: str) -> None:
        if self._unit is None:
            raise LoadFailed(
                f"{reason}, and no unit is configured to {verb} it",
                hints=(f"{verb} the engine, or set unit of harness {self.name!r} in neuron.toml",),
            )
        program = shutil.which("systemctl")
        if program is None:
            raise NotSupported(f"{reason}, and this host has no systemctl to {verb} {self._unit}")
        # Not a subprocess of the event loop: uvloop leaks the write end of the pipe to what the program starts, and
        # would wait for its end.
        try:
            done = await asyncio.to_thread(
                subprocess.run,
                [program, "--no-ask-password", verb, self._unit],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_SYSTEMCTL_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LoadFailed(
                f"systemctl {verb} {self._unit} did not finish within {_SYSTEMCTL_TIMEOUT_S:.0f} s",
                hints=(f"check systemctl status {self._unit}",),
            ) from None
        if done.returncode != 0:
            text = done.stderr.decode("utf-8", "replace").strip()
            raise LoadFailed(
                f"systemctl {verb} {self._unit} failed: {text}",
                hints=("allow the neuron's user to manage that unit with a polkit rule",),
            )
