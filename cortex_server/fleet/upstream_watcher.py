"""The watcher of one external upstream: lists its models at intervals and reports them as ready instances."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import httpx
import msgspec

from cortex_common.backoff import Backoff
from cortex_common.client.bounded_body import UNCOMPRESSED, read_body
from cortex_common.client.control import describe_http_error, tls_verify
from cortex_common.config.gateway import UpstreamEntry
from cortex_common.errors import CortexError, UpstreamFailed, from_envelope
from cortex_common.schema.bounds import MAX_INT, MAX_NAME_LENGTH
from cortex_common.schema.engine_traits import UPSTREAM_TRAITS, detect_engine
from cortex_common.schema.hardware import Discovery, HarnessInfo, Health
from cortex_common.schema.instances import (
    MAX_NODE_MODELS,
    InstanceId,
    InstanceState,
    ModelId,
    ModelInfo,
    NodeStatus,
)
from cortex_server.fleet.credentials import NodeCredentials
from cortex_server.fleet.model_aliases import is_pattern
from cortex_server.fleet.neuron_watcher import RECONNECT_BACKOFF
from cortex_server.fleet.state import Fleet

TIMEOUT_S = 10.0
"""A listing is small; a server that needs longer is unreliable."""

_NO_LISTING_STATUSES = frozenset({404, 405, 501})

MAX_LIST_BYTES = 4 * 1024 * 1024
"""Largest listing that is read; those of the largest providers have about 1 MiB."""


class ListedModel(msgspec.Struct, frozen=True):
    """A model in the response of GET /v1/models.

    Attributes:
        id: the model's name.
        max_model_len: tokens a request may use, as vLLM reports it.
        context_length: the same, as cortex and others report it.
        owned_by: who made it, or the server itself.
    """

    id: str
    max_model_len: float | None = None
    context_length: float | None = None
    owned_by: msgspec.Raw = msgspec.Raw()

    @property
    def context(self) -> int | None:
        """Tokens a request may use, where the server reports it."""
        reported = self.max_model_len or self.context_length
        # Some servers report 0, -1 or the largest integer for "unlimited".
        return int(reported) if reported and 0 < reported <= MAX_INT else None


class _List(msgspec.Struct):
    data: list[ListedModel]


_lists = msgspec.json.Decoder(_List)


def parse_model_list(body: bytes, path: str) -> list[ListedModel]:
    """Return the models of a listing, each once, without names that cannot appear in a header or a log line.

    Args:
        body: the response body.
        path: the path it came from.

    Raises:
        UpstreamFailed: it is not a list of models.
    """
    try:
        models = _lists.decode(body).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamFailed(f"GET {path} did not return a list of models: {error}") from error
    usable = {m.id: m for m in models if m.id.isprintable() and 0 < len(m.id) <= MAX_NAME_LENGTH}
    return list(usable.values())


def instances(entry: UpstreamEntry, listed: Iterable[ListedModel] | None) -> tuple[ModelInfo, ...]:
    """Return what an upstream offers, as ready instances.

    Args:
        entry: its configuration.
        listed: its models; None where it does not list them, which leaves those that the configuration names.

    Raises:
        UpstreamFailed: it lists more than `MAX_NODE_MODELS` of the models to offer.
    """
    if listed is None:
        listed = [ListedModel(name) for name in entry.models if not is_pattern(name)]
    elif entry.models:
        listed = [m for m in listed if any(fnmatchcase(m.id, p) for p in entry.models)]
    models = {m.id: m for m in listed}
    if len(models) > MAX_NODE_MODELS:
        raise UpstreamFailed(
            f"it lists {len(models)} models, more than {MAX_NODE_MODELS}: "
            "name those to offer with `models` in its [[upstreams]] entry"
        )
    return tuple(_instance(entry, model) for model in models.values())


def _instance(entry: UpstreamEntry, model: ListedModel) -> ModelInfo:
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
    """Return an id that is the same for every gateway and after every restart, and valid in a header."""
    slug = re.sub(r"[^a-z0-9]+", "-", model.rsplit("/", 1)[-1].lower()).strip("-")[:40]
    tail = hashlib.sha256(f"{upstream}\0{model}".encode()).hexdigest()[:8]
    return InstanceId(f"{slug or 'model'}-{tail}")


def listing_delay_s(refresh_s: float, failures: int) -> float:
    """Return the seconds until the next listing: back-off after failures, never longer than the refresh interval.

    Args:
        refresh_s: seconds between listings.
        failures: listings that failed in a row.
    """
    if not failures:
        return refresh_s
    return Backoff(RECONNECT_BACKOFF.initial_s, max_s=refresh_s).delay_s(failures)


class UpstreamWatcher:
    """Lists an upstream's models at intervals.

    Args:
        entry: its configuration.
        credentials: its key and TLS settings.
        fleet: where changes are reported.
    """

    def __init__(self, entry: UpstreamEntry, credentials: NodeCredentials, fleet: Fleet) -> None:
        self._entry = entry
        self._credentials = credentials
        self._fleet = fleet

    async def run(self) -> None:
        """Watch until cancelled; whatever else ends it leaves the upstream unreachable until it runs again."""
        entry, fleet = self._entry, self._fleet
        failures = 0
        token = self._credentials.token
        async with httpx.AsyncClient(
            base_url=entry.endpoint,
            headers=UNCOMPRESSED | ({"authorization": f"Bearer {token}"} if token else {}),
            timeout=TIMEOUT_S,
            verify=self._credentials.tls or tls_verify(entry.endpoint),
            trust_env=False,
        ) as http:
            path = f"{entry.api_path}/models"
            undetected = with_engine(entry, ())
            engine = undetected.engine
            fleet.update_discovery(entry.name, _discovery(undetected, http.base_url.host))
            while True:
                try:
                    body = await _list(http, path)
                    # In a thread: a long list takes longer than the event loop should be blocked.
                    detected, models = await asyncio.to_thread(_offered, entry, body, path)
                    if detected.engine != engine:
                        engine = detected.engine
                        fleet.update_discovery(entry.name, _discovery(detected, http.base_url.host))
                    health = Health(uptime_secs=0.0)
                    fleet.update_status(entry.name, NodeStatus(health=health, models=models))
                    failures = 0
                except CortexError as error:
                    fleet.mark_unreachable(entry.name, error.message)
                    failures += 1
                except Exception as error:
                    fleet.mark_unreachable(
                        entry.name, f"its list of models can't be read: {error!r}"
                    )
                    raise
                delay = listing_delay_s(entry.refresh, failures)
                # Jitter, so that several gateways do not list at the same time.
                await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - not a secret


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


def _offered(
    entry: UpstreamEntry, body: bytes | None, path: str
) -> tuple[UpstreamEntry, tuple[ModelInfo, ...]]:
    """Return the entry with the engine that the listing shows, and what it offers."""
    listed = None if body is None else parse_model_list(body, path)
    detected = with_engine(entry, listed or ())
    return detected, instances(detected, listed)


def with_engine(entry: UpstreamEntry, listed: Sequence[ListedModel]) -> UpstreamEntry:
    """Return the entry of an upstream with its engine, detected from its models if it is not configured."""
    if entry.engine != "auto":
        return entry
    owners = {bytes(model.owned_by).decode("utf-8", "replace").strip('"') for model in listed}
    engine = detect_engine(owners, {model.id for model in listed})
    return entry.model_copy(update={"engine": engine})


async def _list(http: httpx.AsyncClient, path: str) -> bytes | None:
    """Return the model list as JSON; None where the server has none at that path.

    Raises:
        UpstreamFailed: it is unreachable or answers with an error.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S), http.stream("GET", path) as response:
            body = await read_body(response, MAX_LIST_BYTES)
    except TimeoutError as error:
        raise UpstreamFailed(f"GET {path} took longer than {TIMEOUT_S:.0f} s") from error
    except httpx.HTTPError as error:
        reason = describe_http_error(error)
        raise UpstreamFailed(f"{http.base_url} can't be reached: {reason}") from error
    if response.status_code in _NO_LISTING_STATUSES:
        return None
    if response.is_redirect:
        location = response.headers.get("location", "").partition("?")[0][:200]
        raise UpstreamFailed(
            f"it redirects to {location or 'nowhere'}: set base_url in cortex.toml to that address"
        )
    if response.status_code >= 400:
        summary = f"GET {path} answered {response.status_code}"
        message = from_envelope(body, response.status_code, f"GET {path}").message
        raise UpstreamFailed(message if message.startswith(summary) else f"{summary}: {message}")
    return body
