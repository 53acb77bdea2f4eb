"""A mistral.rs server that someone else runs: its own unload and reload, behind the guards that they need.

Facts (0.8, 0.9): management calls answer 200 whatever happened, the JSON status tells; a reload of a model that is not
exactly "unloaded" marks it as "reloading" for ever, which only a restart cures; unload drops requests in flight. A 0.8
with several models answers an unload with "no_loader_config" and has lost the model: only a restart brings it back.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import defaultdict
from collections.abc import Mapping

import httpx

from cortex_common.config.neuron import HarnessEntry
from cortex_common.errors import (
    BadRequest,
    LoadFailed,
    NotSupported,
    UpstreamFailed,
    nearest_names,
)
from cortex_common.schema.hardware import DeviceKind
from cortex_common.schema.instances import LoadSpec
from neuron_server.harness.base import LoadCycles, Probe
from neuron_server.harness.command import sum_series
from neuron_server.harness.mistralrs import CAPABILITIES, models_of, started_of, version_of
from neuron_server.harness.probe import get, get_json

_POLL_S = 0.25
_RELOAD_LIMIT_S = 1800.0
_SYSTEMCTL_LIMIT_S = 120.0
_RUNNING = ("mistralrs_sequences_running", "mistralrs_sequences_waiting")


class AttachHarness:
    """Loads and unloads the models that a running engine was configured with."""

    def __init__(self, entry: HarnessEntry, http: httpx.AsyncClient) -> None:
        assert entry.url is not None  # or neuron.toml had been refused
        self.name = entry.name
        self.capabilities = CAPABILITIES
        self.url = entry.url
        self.load_cycles = LoadCycles()
        self._unit = entry.unit
        self._limit_s = entry.load_timeout_s or _RELOAD_LIMIT_S
        self._http = http
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._restarting = asyncio.Lock()
        self._lost: set[str] = set()

    @property
    def program(self) -> str | None:
        """Someone else's."""
        return None

    @property
    def missing(self) -> str | None:
        """Nothing of it need be here."""
        return None

    @property
    def restartable(self) -> bool:
        """Whether its unit is configured."""
        return self._unit is not None

    async def prepare(self) -> None:
        """Nothing to look at."""

    async def without_gpu(self) -> str | None:
        """It is whatever somebody else made of it."""
        return None

    def served_as(self, spec: LoadSpec) -> str | None:
        """The engine's name for the model, given as `source`."""
        return spec.source if spec.source not in {None, spec.model_id} else None

    def weights_mb(self, spec: LoadSpec) -> int | None:  # noqa: ARG002 - the protocol's
        """The engine's own business."""
        return None

    async def estimate_mb(self, spec: LoadSpec, kind: DeviceKind) -> int | None:  # noqa: ARG002 - the protocol's
        """Not asked: an engine that runs has its memory already, or takes it whatever we say."""
        return 0

    async def in_flight(self, url: str) -> int | None:
        """Of the whole engine: it does not tell by model."""
        response = await get(self._http, url + "/metrics")
        if response is None or response.status_code != 200:
            return None
        return sum_series(response.text, _RUNNING)

    async def loaded(self) -> Mapping[str, bool] | None:
        """See `AttachedHarness.loaded`."""
        listed = await get_json(self._http, self.url + "/v1/models")
        if listed is None:
            return None
        self.load_cycles = self.load_cycles.observed(started_of(listed))
        return models_of(listed)

    async def restart(self) -> Mapping[str, bool]:
        """See `AttachedHarness.restart`."""
        await self._restart("a restart was asked for")
        return await self.loaded() or {}

    async def load(self, spec: LoadSpec) -> Probe:
        """See `AttachedHarness.load`; a model stuck in "reloading" is cured by a restart where a unit is known."""
        name = spec.source or spec.model_id
        await self._restarted()
        async with self._locks[name]:
            if await self.loaded() is None:
                await self._systemctl("start", f"the engine at {self.url} does not answer")
                await self._until_reachable()
            status = await self._settled(name)
            if status == "reloading":
                await self._restart(f"{name} is stuck in reloading")
                status = await self._settled(name)
            elif status == "not_found" and name in self._lost:
                await self._bring_back(name)
                status = await self._settled(name)
            if status == "unloaded":
                await self._reload(name)
            elif status != "loaded":
                known = tuple(await self.loaded() or ())
                raise BadRequest(
                    f"the engine at {self.url} was not configured with {name!r}",
                    param="source",
                    hints=(
                        *(f"did you mean {n!r}?" for n in nearest_names(name, known)),
                        "mistral.rs can't add models at run time: add it to its start-up configuration",
                    ),
                )
        return Probe(ready=True, version=await version_of(self._http, self.url))

    async def unload(self, spec: LoadSpec) -> None:
        """See `AttachedHarness.unload`."""
        name = spec.source or spec.model_id
        await self._restarted()
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

    async def _bring_back(self, name: str) -> None:
        """Restart for a lost model, where that harms nobody."""
        if True in (await self.loaded() or {}).values():
            raise LoadFailed(
                f"the engine lost {name} when it unloaded it, and only a restart brings it back",
                hints=(f"POST /harnesses/{self.name}/restart, once its other models are idle",),
            )
        await self._restart(f"{name} was lost when it was unloaded")

    async def _restart(self, why: str) -> None:
        async with self._restarting:
            await self._systemctl("restart", why)
            await self._until_reachable()
            self.load_cycles = LoadCycles(self.load_cycles.started)
            self._lost.clear()

    async def _restarted(self) -> None:
        """Wait for the end of a restart that is under way."""
        async with self._restarting:
            pass

    async def _reload(self, name: str) -> None:
        answer = await self._manage("reload", name, limit_s=self._limit_s)
        if answer.get("status") != "loaded":
            why = answer.get("error") or answer.get("status")
            raise LoadFailed(f"the engine could not load {name}: {why}")
        self.load_cycles = self.load_cycles.incremented()

    async def _settled(self, name: str) -> str:
        """The model's status once it is no longer reloading, or "reloading" when that takes too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limit_s
        while True:
            status = await self._status(name)
            if status != "reloading" or loop.time() > deadline:
                return status
            await asyncio.sleep(_POLL_S)

    async def _status(self, name: str) -> str:
        return str((await self._manage("status", name)).get("status"))

    async def _manage(self, what: str, name: str, limit_s: float = 10.0) -> dict[str, object]:
        url = f"{self.url}/v1/models/{what}"
        try:
            response = await self._http.post(url, json={"model_id": name}, timeout=limit_s)
            answer = response.json()
        except (httpx.HTTPError, ValueError) as failed:
            raise UpstreamFailed(
                f"the engine at {self.url} did not answer {what}: {failed!r}"
            ) from failed
        return answer if isinstance(answer, dict) else {}

    async def _until_reachable(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._limit_s
        while await self.loaded() is None:
            if asyncio.get_running_loop().time() > deadline:
                raise LoadFailed(f"the engine at {self.url} did not come up")
            await asyncio.sleep(_POLL_S)

    async def _systemctl(self, verb: str, why: str) -> None:
        if self._unit is None:
            raise LoadFailed(
                f"{why}, and no unit is configured to {verb} it",
                hints=(f"{verb} the engine, or set unit of harness {self.name!r} in neuron.toml",),
            )
        program = shutil.which("systemctl")
        if program is None:
            raise NotSupported(f"{why}, and this host has no systemctl to {verb} {self._unit}")
        child = await asyncio.create_subprocess_exec(
            program,
            "--no-ask-password",
            verb,
            self._unit,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_SYSTEMCTL_LIMIT_S):
                _, said = await child.communicate()
        except TimeoutError:
            child.kill()
            raise LoadFailed(
                f"systemctl {verb} {self._unit} was not done after {_SYSTEMCTL_LIMIT_S:.0f} s",
                hints=(f"see systemctl status {self._unit}",),
            ) from None
        if child.returncode != 0:
            text = said.decode("utf-8", "replace").strip()
            raise LoadFailed(
                f"systemctl {verb} {self._unit} failed: {text}",
                hints=("allow the neuron's user to manage that unit with a polkit rule",),
            )
