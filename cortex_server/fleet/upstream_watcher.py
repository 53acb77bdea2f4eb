"""Servers that somebody else runs, as nodes of the fleet: one task each, which lists its models and sees it alive."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

import httpx
import msgspec

from cortex_common.client.control import describe_http_error, tls_verify
from cortex_common.config.gateway import UpstreamEntry
from cortex_common.errors import CortexError, UpstreamFailed, from_envelope
from cortex_common.schema.engine_traits import UPSTREAM_TRAITS
from cortex_common.schema.hardware import Discovery, HarnessInfo, Health
from cortex_common.schema.instances import InstanceId, InstanceState, ModelId, ModelInfo, NodeStatus
from cortex_server.fleet.credentials import NodeAccess
from cortex_server.fleet.model_aliases import is_pattern
from cortex_server.fleet.neuron_watcher import FIRST_PAUSE_S
from cortex_server.fleet.state import Fleet

TIMEOUT_S = 10.0
"""A listing is small; whoever needs longer for it can't be relied on for more."""

_LISTS_NOTHING = frozenset({404, 405, 501})
_MOST_NAME = 512


class Listed(msgspec.Struct, frozen=True):
    """A model in the answer of GET /v1/models.

    Attributes:
        context: tokens a request may use, where the server tells: vLLM as `max_model_len`, cortex and others as
            `context_length`.
    """

    id: str
    max_model_len: int | None = None
    context_length: int | None = None

    @property
    def context(self) -> int | None:
        """See the class."""
        return self.max_model_len or self.context_length


class _List(msgspec.Struct):
    data: list[Listed]


_lists = msgspec.json.Decoder(_List)


def read_list(body: bytes, path: str) -> list[Listed]:
    """The models of a listing; names that no header or log line could bear are left out.

    Args:
        body: the answer.
        path: that it came from.

    Raises:
        UpstreamFailed: it is something else.
    """
    try:
        found = _lists.decode(body).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failed:
        raise UpstreamFailed(f"GET {path} is no list of models: {failed}") from failed
    return [m for m in found if m.id.isprintable() and 0 < len(m.id) <= _MOST_NAME]


def instances(entry: UpstreamEntry, listed: Iterable[Listed] | None) -> tuple[ModelInfo, ...]:
    """What an upstream offers, as ready instances.

    Args:
        entry: its settings.
        listed: the models that it has; None where it does not tell, which leaves those that the settings name.
    """
    if listed is None:
        listed = [Listed(name) for name in entry.models if not is_pattern(name)]
    elif entry.models:
        listed = [m for m in listed if any(fnmatchcase(m.id, p) for p in entry.models)]
    return tuple(_instance(entry, model) for model in {m.id: m for m in listed}.values())


def _instance(entry: UpstreamEntry, model: Listed) -> ModelInfo:
    return ModelInfo(
        id=ModelId(entry.prefix + model.id),
        harness=entry.engine,
        status=InstanceState.READY,
        instance_id=_instance_id(entry.name, model.id),
        url=entry.endpoint,
        context=model.context or entry.context,
        parallel=entry.parallel,
        served_as=model.id,
    )


def _instance_id(upstream: str, model: str) -> InstanceId:
    """The same for every gateway and each time, and plain enough for a header."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.rsplit("/", 1)[-1].lower()).strip("-")[:40]
    tail = hashlib.sha256(f"{upstream}\0{model}".encode()).hexdigest()[:8]
    return InstanceId(f"{slug or 'model'}-{tail}")


def pause_s(refresh: float, failures: int) -> float:
    """Seconds until the next listing: soon after one that failed, less so after more of them.

    Args:
        refresh: seconds between listings.
        failures: listings in a row that failed.
    """
    return min(refresh, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 30)) if failures else refresh


class UpstreamWatcher:
    """Lists an upstream's models again and again.

    Args:
        entry: its settings.
        access: its key, and how to speak TLS with it.
        fleet: what it reports to.
    """

    def __init__(self, entry: UpstreamEntry, access: NodeAccess, fleet: Fleet) -> None:
        self._entry = entry
        self._access = access
        self._fleet = fleet

    async def run(self) -> None:
        """Watch until cancelled."""
        entry, fleet = self._entry, self._fleet
        failures = 0
        token = self._access.token
        async with httpx.AsyncClient(
            base_url=entry.endpoint,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=TIMEOUT_S,
            verify=self._access.tls or tls_verify(entry.endpoint),
            trust_env=False,
        ) as http:
            fleet.discovered(entry.name, _discovery(entry, http.base_url.host))
            while True:
                try:
                    found = instances(entry, await _list(http, f"{entry.api_path}/models"))
                    health = Health(uptime_secs=0.0)
                    fleet.reported(entry.name, NodeStatus(health=health, models=found))
                    failures = 0
                except CortexError as failed:
                    fleet.lost(entry.name, failed.message)
                    failures += 1
                pause = pause_s(entry.refresh, failures)
                # Spread out, so that many gateways do not ask as one.
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - no secret


def _discovery(entry: UpstreamEntry, host: str) -> Discovery:
    """Describe an upstream as a node with one harness, named after its engine."""
    info = HarnessInfo(engine=entry.engine, traits=UPSTREAM_TRAITS[entry.engine])
    return Discovery(
        hostname=host,
        os="",
        kernel="",
        harnesses=(entry.engine,),
        harness_info={entry.engine: info},
    )


async def _list(http: httpx.AsyncClient, path: str) -> list[Listed] | None:
    """The models; None where the server does not list them at that path.

    Raises:
        UpstreamFailed: it can't be reached, or answers an error.
    """
    try:
        answer = await http.get(path)
    except httpx.HTTPError as failed:
        reason = describe_http_error(failed)
        raise UpstreamFailed(f"{http.base_url} can't be reached: {reason}") from failed
    if answer.status_code in _LISTS_NOTHING:
        return None
    if answer.is_redirect:
        location = answer.headers["location"].partition("?")[0]
        raise UpstreamFailed(f"it redirects to {location}: base_url in cortex.toml should be there")
    if answer.status_code >= 400:
        what = f"GET {path} answered {answer.status_code}"
        told = from_envelope(answer.content, answer.status_code, f"GET {path}").message
        raise UpstreamFailed(told if told.startswith(what) else f"{what}: {told}")
    return read_list(answer.content, path)
