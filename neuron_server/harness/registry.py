"""The harnesses of a node, from neuron.toml.

To add a kind of engine, write a module that implements `neuron_server.harness.base.Harness`, and add it to `KINDS`: see
docs/guides/add-a-harness.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import httpx

from cortex_common.config.neuron import HarnessEntry
from cortex_common.errors import BadRequest, ConfigError, nearest_names
from cortex_common.schema.hardware import HarnessInfo, HostWarning
from neuron_server.harness.attached import AttachHarness
from neuron_server.harness.base import AttachedHarness, EngineCapabilities, Harness
from neuron_server.harness.command import CommandHarness
from neuron_server.harness.embedded import EmbeddedHarness
from neuron_server.harness.llamacpp import LlamaCppHarness
from neuron_server.harness.mistralrs import MistralrsHarness
from neuron_server.harness.probe import answers_token_request, get, supports_token_request

_METRICS_TIMEOUT_S = 2.0

Builder = Callable[[HarnessEntry, httpx.AsyncClient], Harness]

TokenProbe = Callable[[str, str], Awaitable[bool]]
"""Asks the engine at a URL for a token of a model; returns whether it answered. See `probe.answers_token_request`."""

KINDS: Mapping[str, Builder] = {
    "embedded": EmbeddedHarness,
    "llamacpp": LlamaCppHarness,
    "mistralrs": MistralrsHarness,
    "attach": AttachHarness,
    "command": CommandHarness,
}


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """A harness with its settings.

    Attributes:
        harness: the harness.
        settings: its settings.
        probe_token: asks one of its engines for a token; None if they can't be asked, or must not be.
    """

    harness: Harness
    settings: HarnessEntry
    probe_token: TokenProbe | None = None


class HarnessRegistry:
    """The harnesses of a node, by name.

    Args:
        entries: the harnesses' settings.
        http: the client for probes; closed with the registry.
        kinds: the constructor of each kind of harness.

    Raises:
        ConfigError: an entry has an unknown kind.
    """

    def __init__(
        self,
        entries: Sequence[HarnessEntry],
        http: httpx.AsyncClient,
        kinds: Mapping[str, Builder] = KINDS,
    ) -> None:
        self._http = http
        self._by_name = {entry.name: _build(entry, http, kinds) for entry in entries}

    def warnings(self) -> tuple[HostWarning, ...]:
        """Return a warning for each configured engine that is not installed."""
        return tuple(
            HostWarning(code="engine_missing", message=f"{name}: {reason}")
            for name, entry in self._by_name.items()
            if (reason := entry.harness.missing_reason)
        )

    async def prepare(self) -> None:
        """Inspect all engines' programs, at the same time, because one that hangs takes a minute."""
        await asyncio.gather(*(entry.harness.prepare() for entry in self._by_name.values()))

    async def read_metrics(self, url: str) -> str | None:
        """Return the metrics of the engine at a URL; None if it does not answer within two seconds."""
        try:
            async with asyncio.timeout(_METRICS_TIMEOUT_S):
                response = await get(self._http, url + "/metrics")
        except TimeoutError:
            return None
        return response.text if response is not None and response.status_code == 200 else None

    async def close(self) -> None:
        """Close the HTTP client."""
        await self._http.aclose()

    def attached_harnesses(self) -> Iterator[tuple[RegistryEntry, AttachedHarness]]:
        """Yield the attached engines' harnesses."""
        for entry in self._by_name.values():
            if isinstance(entry.harness, AttachedHarness):
                yield entry, entry.harness

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of neuron.toml."""
        return tuple(self._by_name)

    def info(self) -> Mapping[str, HarnessInfo]:
        """Return what GET /discovery reports about each harness, in the order of neuron.toml."""
        return {name: _info(r.harness.capabilities) for name, r in self._by_name.items()}

    def get(self, name: str) -> RegistryEntry:
        """Return the harness with a name.

        Raises:
            BadRequest: this node has no such harness.
        """
        if name not in self._by_name:
            configured = ", ".join(self._by_name) or "none"
            close = nearest_names(name, self._by_name)
            raise BadRequest(
                f"this node has no harness {name!r} (it has {configured})",
                param="harness",
                hints=(f"did you mean {close[0]!r}?",) if close else (),
            )
        return self._by_name[name]


def _info(capabilities: EngineCapabilities) -> HarnessInfo:
    return HarnessInfo(
        engine=capabilities.engine,
        device_kinds=capabilities.kinds,
        traits=capabilities.traits,
        takes_key=capabilities.takes_key,
    )


def _build(
    entry: HarnessEntry, http: httpx.AsyncClient, kinds: Mapping[str, Builder]
) -> RegistryEntry:
    kind = entry.kind or entry.name
    if kind not in kinds:
        raise ConfigError(
            f"harness {entry.name!r}: there is no kind {kind!r}",
            hints=(f"set kind to one of {', '.join(kinds)}",),
        )
    harness = kinds[kind](entry, http)
    routes = harness.capabilities.routes
    probe: TokenProbe | None = None
    if entry.token_probe and supports_token_request(routes):
        probe = partial(answers_token_request, http, routes=routes)
    return RegistryEntry(harness, entry, probe)
