"""cortex.toml: the gateway's settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from cortex_common.config.access import KeyEntry, LimitsSection, TlsSection
from cortex_common.config.base import Address, BaseUrl, HostName, Origin, Section
from cortex_common.config.catalogue import Duration
from cortex_common.schema.bounds import Count, PositiveSeconds, Seconds, Tokens


class GatewaySection(Section):
    """[gateway]: listeners, state and timeouts."""

    listen: Address = "127.0.0.1:8000"
    """Address of the API. Use 0.0.0.0:8000 to accept connections from other hosts."""

    metrics_listen: Address | None = "127.0.0.1:9100"
    """Address of the Prometheus metrics, which have their own listener."""

    reuse_port: bool = False
    """Share `listen` with other gateways on this host (SO_REUSEPORT). The kernel distributes connections among them.
    All of them must set this."""

    models: Path = Path("models.toml")
    """Path of the model catalogue, relative to this file."""

    state_dir: Path | None = None
    """Directory for state that survives restarts: keys created at run time, usage, measured sizes.
    Default: $STATE_DIRECTORY, which systemd sets. Without either, state is kept in memory only."""

    insecure: bool = False
    """Serve inference and metrics without a key to every client that can connect. Default: as long as no keys exist,
    only programs on this host are served. The operator API never is."""

    allowed_origins: tuple[Origin, ...] = ()
    """Origins of web pages whose scripts can use the API from a browser (CORS), such as "https://chat.example.org"; "*"
    allows any. Such requests need a key like all others. Requests of other pages are rejected, except those of pages
    that this host serves."""

    allowed_hosts: tuple[HostName, ...] = ()
    """Names of this host that the Host header of requests without a key can contain, beside its hostname, those in
    /etc/hosts, and IP addresses; such as "gate.example.org" or "*.example.org"."""

    max_body_mb: Annotated[int, Field(ge=1, le=4096)] = 64
    """Maximum size of a request body in MiB; larger requests are rejected with 413."""

    cold_start_timeout_s: PositiveSeconds = 1800.0
    """Seconds that a request waits for a model to load before it is rejected with 503 and Retry-After."""

    cold_start_comment_after_s: Seconds = 5.0
    """Seconds that a streaming request waits for a load before the gateway starts the response and keeps it alive with
    comments. The interval between them begins with this and grows to 40 s. 0 disables comments; errors during the load
    then always have an HTTP error status."""

    prefill_comment_after_s: Seconds = 15.0
    """Seconds that a streaming request waits for the engine's first byte before comments (or pings) keep the connection
    alive. The interval between them begins with this and grows to 40 s. 0 disables comments."""

    connect_timeout_s: PositiveSeconds = 5.0
    """Seconds to wait for a connection to an engine or a node before another instance is tried."""

    first_byte_timeout_s: PositiveSeconds = 1800.0
    """Seconds to wait for the first byte of an engine's response. Long prompts can take minutes to process."""

    idle_timeout_s: PositiveSeconds = 600.0
    """Seconds without a byte from the engine during a response after which the request fails, and seconds without
    progress after which a client that does not read its response is disconnected."""

    drain_timeout_s: Seconds = 60.0
    """Seconds that requests in flight can continue when the gateway shuts down."""


class EvictionSection(Section):
    """[eviction]: which instances are evicted to free memory, and when idle ones are unloaded."""

    strategy: Literal["lru", "priority", "cost"] = "lru"
    """How instances to evict are chosen: "lru" evicts the least recently used one; "priority" the one with the lowest
    `priority`, then the least recently used; "cost" the one with the lowest expected cost, which is its measured load
    time multiplied by its request rate, relative to the memory that it frees."""

    idle_ttl: Duration = 0.0
    """Time without requests after which a model is unloaded; 0 disables this. `ttl` of a model takes precedence."""

    min_residency: Duration = 30.0
    """Upper limit of the time after a load in which an instance is not evicted, unless nothing else can be. The
    protection lasts as long as the load took, at most this long."""

    drain_timeout: Duration = 300.0
    """Time that an instance chosen for eviction has to finish its requests. If it is still busy afterwards, it is kept,
    and other instances are considered."""

    defrag_after_cycles: Count = 50
    """Loads and unloads in an attached engine after which it is drained and restarted with the same models loaded, to
    defragment its memory: once it has been idle for a minute, or at twice as many cycles even if it is in use.
    0 disables this. The neuron must know the engine's systemd unit."""


class PlacementSection(Section):
    """[placement]: where models are loaded, and how long requests wait for it."""

    prefer: Literal["pack", "spread"] = "pack"
    """Which of the devices that fit is used: "pack" the one with the least free memory, which keeps large blocks
    available; "spread" the one with the most."""

    prefer_gpu: bool = True
    """Evict an idle model from a GPU before a model that fits there is placed on the CPU, and move a model back from
    the CPU once a GPU has the memory. Otherwise free memory of the CPU is used first."""

    drain_after: Duration = 5.0
    """Time that a request waits for memory held by busy models before one of them is drained and evicted."""

    max_waiting: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Maximum number of requests that wait for one model to load; further requests are rejected with 429."""

    scale_out_after: Duration = 10.0
    """Time that all slots of a model must be busy before another instance is started, if `replicas.max` allows it and
    memory is free."""


class NeuronEntry(Section):
    """[[neurons]]: one GPU host."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name of the node in the command, logs and metrics."""

    endpoint: BaseUrl
    """URL of the neuron."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that models can require, such as {rack = "a2"}."""

    engine_hosts: tuple[Annotated[str, Field(min_length=1, max_length=253)], ...] = ()
    """Host names and IP addresses of this node, other than that of `endpoint`, at which its engines can be reached with
    `engine_access = "direct"`. Requests are sent to no other host."""

    token: str | None = None
    """Token that the neuron requires. Prefer `token_file` or the environment variable. Default: that of the neuron on
    this host, if the gateway can read it."""

    token_file: Path | None = None
    """File that contains the token. A bare file name is looked up among systemd's credentials first."""

    ca: Path | None = None
    """PEM file of certificate authorities that the neuron's certificate is verified against. Default: the system's."""

    certificate: Path | None = None
    """PEM file of the client certificate, if the neuron requires one."""

    certificate_key: Path | None = None
    """PEM file of the client certificate's private key. Default: the key is in `certificate`."""

    @property
    def api_path(self) -> str:
        """Path of the engines' API."""
        return "/v1"


class UpstreamEntry(Section):
    """[[upstreams]]: an external OpenAI-compatible server that is part of the fleet as a node without a neuron.

    Its models are listed, routed and balanced like those of the other nodes, but never loaded or evicted.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name of the node in the command, logs and metrics."""

    base_url: BaseUrl
    """URL of the server, with or without a trailing /v1."""

    api_path: Annotated[str, Field(pattern=r"^(/[^\s?#]*[^/\s?#])?$")] = "/v1"
    """Path of the API below base_url. For a provider whose base URL ends differently, such as
    https://generativelanguage.googleapis.com/v1beta/openai, set base_url to that URL and this to ""."""

    key: str | None = None
    """API key to send, in place of the client's own. Prefer `key_file` or the environment variable."""

    key_file: Path | None = None
    """File that contains the key. A bare file name is looked up among systemd's credentials first."""

    ca: Path | None = None
    """PEM file of certificate authorities that the server's certificate is verified against. Default: the system's."""

    engine: Literal[
        "auto",
        "openai",
        "llamacpp",
        "mistralrs",
        "vllm",
        "sglang",
        "cortex",
        "deepseek",
        "moonshot",
    ] = "auto"
    """Kind of server, which determines how requests are adapted for it. "auto" detects it from the models that the
    server lists; a server of another kind is treated like OpenAI's."""

    models: tuple[str, ...] = ()
    """Models to offer; names with `*` or `?` are patterns. Default: all that the server lists. For a server without
    /v1/models, list their names here."""

    prefix: str = ""
    """Prefix for the names of its models, such as "cloud/". Without one, requests for a model that also exists
    elsewhere in the fleet are balanced across both."""

    context: Tokens | None = None
    """Context size in tokens, if the server does not report it."""

    parallel: Annotated[int, Field(ge=1, le=4096)] = 16
    """Number of requests that each of its models processes at the same time, for load balancing."""

    refresh: Duration = 15.0
    """Interval at which its models are listed, which also serves as the health check."""

    overflow: bool = False
    """Use it only while all slots of the model's other instances are busy, or there are no other instances."""

    retries: bool = True
    """Retry on another instance when a request to it fails before the first byte."""

    breaker: bool = True
    """Stop sending requests to one of its models for a while after several consecutive failures."""

    @property
    def endpoint(self) -> str:
        """URL of the server without the path of its API."""
        return self.base_url.removesuffix(self.api_path)


NodeEntry = NeuronEntry | UpstreamEntry
"""The entry of a node of the fleet."""


class GatewayConfig(Section):
    """The whole cortex.toml."""

    gateway: GatewaySection = GatewaySection()
    eviction: EvictionSection = EvictionSection()
    placement: PlacementSection = PlacementSection()
    limits: LimitsSection = LimitsSection()
    tls: TlsSection = TlsSection()
    keys: tuple[KeyEntry, ...] = ()
    neurons: tuple[NeuronEntry, ...] = ()
    upstreams: tuple[UpstreamEntry, ...] = ()

    @property
    def nodes(self) -> tuple[NodeEntry, ...]:
        """All nodes of the fleet."""
        return (*self.neurons, *self.upstreams)

    @field_validator("keys")
    @classmethod
    def _require_unique_keys(cls, keys: tuple[KeyEntry, ...]) -> tuple[KeyEntry, ...]:
        if name := _duplicate(k.name for k in keys):
            raise ValueError(f"two keys have the name {name!r}")
        if key_hash := _duplicate(k.hash for k in keys):
            raise ValueError(f"two keys have the hash {key_hash!r}")
        return keys

    @field_validator("neurons")
    @classmethod
    def _require_unique_neurons(cls, neurons: tuple[NeuronEntry, ...]) -> tuple[NeuronEntry, ...]:
        if name := _duplicate(n.name for n in neurons):
            raise ValueError(f"two neurons have the name {name!r}")
        if endpoint := _duplicate(n.endpoint for n in neurons):
            raise ValueError(f"two neurons have the endpoint {endpoint!r}")
        return neurons

    @field_validator("upstreams")
    @classmethod
    def _require_unique_upstreams(
        cls, upstreams: tuple[UpstreamEntry, ...], info: ValidationInfo
    ) -> tuple[UpstreamEntry, ...]:
        nodes = (*info.data.get("neurons", ()), *upstreams)
        if name := _duplicate(n.name for n in nodes):
            raise ValueError(f"two nodes have the name {name!r}")
        if url := _duplicate(u.endpoint for u in upstreams):
            raise ValueError(f"two upstreams have the URL {url!r}")
        return upstreams


def _duplicate(values: Iterable[str]) -> str | None:
    return next((value for value, n in Counter(values).items() if n > 1), None)
