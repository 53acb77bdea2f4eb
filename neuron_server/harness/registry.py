"""Which harnesses this node has: name to adapter, from neuron.toml.

Adding a kind of engine is one module that follows `neuron_server.harness.base.Harness` and one line in
`KINDS`: see docs/guides/add-a-harness.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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

Builder = Callable[[HarnessEntry, httpx.AsyncClient], Harness]

KINDS: Mapping[str, Builder] = {
    "embedded": EmbeddedHarness,
    "llamacpp": LlamaCppHarness,
    "mistralrs": MistralrsHarness,
    "attach": AttachHarness,
    "command": CommandHarness,
}


@dataclass(frozen=True, slots=True)
class Registered:
    """A harness with its settings."""

    harness: Harness
    entry: HarnessEntry


class Registry:
    """The harnesses of a node by name.

    Args:
        entries: of neuron.toml.
        http: for probes; closed with the registry.
        kinds: what makes the harness of each kind.

    Raises:
        ConfigError: an entry's kind is not known.
    """

    def __init__(
        self,
        entries: Sequence[HarnessEntry],
        http: httpx.AsyncClient,
        kinds: Mapping[str, Builder] = KINDS,
    ) -> None:
        self._http = http
        self._by_name = {entry.name: _build(entry, http, kinds) for entry in entries}

    def missing(self) -> tuple[HostWarning, ...]:
        """Engines that neuron.toml names and this host does not have now."""
        return tuple(
            HostWarning(code="engine_missing", message=f"{name}: {missing}")
            for name, registered in self._by_name.items()
            if (missing := registered.harness.missing)
        )

    async def prepare(self) -> None:
        """Look at all engines' programs, so that launches need not."""
        for registered in self._by_name.values():
            await registered.harness.prepare()

    async def close(self) -> None:
        """Close the client that probes share."""
        await self._http.aclose()

    def attached(self) -> Iterator[tuple[Registered, AttachedHarness]]:
        """The engines that someone else runs."""
        for registered in self._by_name.values():
            if isinstance(registered.harness, AttachedHarness):
                yield registered, registered.harness

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of neuron.toml."""
        return tuple(self._by_name)

    def info(self) -> Mapping[str, HarnessInfo]:
        """Return what GET /discovery reports of each harness, in the order of neuron.toml."""
        return {name: _info(r.harness.capabilities) for name, r in self._by_name.items()}

    def get(self, name: str) -> Registered:
        """The harness of a name.

        Raises:
            BadRequest: this node has none of that name.
        """
        if name not in self._by_name:
            known = ", ".join(self._by_name) or "none"
            close = nearest_names(name, self._by_name)
            raise BadRequest(
                f"this node has no harness {name!r} (it has {known})",
                param="harness",
                hints=(f"did you mean {close[0]!r}?",) if close else (),
            )
        return self._by_name[name]


def _info(capabilities: EngineCapabilities) -> HarnessInfo:
    return HarnessInfo(
        engine=capabilities.engine,
        device_kinds=capabilities.kinds,
        traits=capabilities.traits,
    )


def _build(
    entry: HarnessEntry, http: httpx.AsyncClient, kinds: Mapping[str, Builder]
) -> Registered:
    kind = entry.kind or entry.name
    if kind not in kinds:
        raise ConfigError(
            f"harness {entry.name!r}: there is no kind {kind!r}",
            hints=(f"set kind to one of {', '.join(kinds)}",),
        )
    return Registered(kinds[kind](entry, http), entry)
