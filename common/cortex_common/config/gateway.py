"""cortex.toml: the gateway's settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from cortex_common.config.access import KeyEntry, LimitsSection, TlsSection
from cortex_common.config.base import Address, BaseUrl, Origin, Section
from cortex_common.config.catalogue import Duration


class GatewaySection(Section):
    """[gateway]: where it listens and what it accepts."""

    listen: Address = "127.0.0.1:8000"
    """Address of the API. Use 0.0.0.0:8000 to serve other hosts."""

    metrics_listen: Address | None = "127.0.0.1:9100"
    """Address of the Prometheus metrics, a listener of its own."""

    reuse_port: bool = False
    """Share `listen` with other gateways on this host (SO_REUSEPORT): the kernel spreads connections over them. All
    of them must set it."""

    models: Path = Path("models.toml")
    """The catalogue of models, relative to this file."""

    state_dir: Path | None = None
    """Directory for what outlasts the gateway: keys made at run time, usage, measured sizes.
    Default: $STATE_DIRECTORY, which systemd sets; without either nothing outlasts it."""

    insecure: bool = False
    """Serve inference and metrics without a key to whoever can connect. Default: to this host only, until there
    are keys."""

    allowed_origins: tuple[Origin, ...] = ()
    """Origins of the web pages whose scripts may use the API from a browser (CORS), such as
    "https://chat.example.org"; "*" means any. They need a key as everybody else does."""

    max_body_mb: Annotated[int, Field(ge=1, le=4096)] = 64
    """Largest request body in MiB; beyond it the answer is 413."""

    cold_start_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds that a request waits for a model that is being loaded before it is told to come back later."""

    cold_start_comment_after_s: Annotated[float, Field(ge=0)] = 5.0
    """Seconds that a streamed request waits for a load before comments keep its stream alive, and between them.
    0 sends none: then errors during the load come as HTTP errors, however late."""

    prefill_comment_after_s: Annotated[float, Field(ge=0)] = 15.0
    """Seconds that a streamed request waits for its engine's first byte before comments (or pings) keep its stream
    alive, and between them. 0 sends none."""

    connect_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds to connect to an engine or a node before trying elsewhere."""

    first_byte_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds of silence before an engine's first byte. Long prompts compute for minutes without a byte."""

    idle_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds of silence inside an answer before the engine is given up, and seconds before a client is that does not
    take what is there for it."""

    drain_timeout_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds that requests under way may go on after the gateway was told to stop."""


class EvictionSection(Section):
    """[eviction]: which models make room for others."""

    strategy: Literal["lru", "priority", "cost"] = "lru"
    """How victims are chosen: "lru" takes the one whose last request ended longest ago, "priority" the
    lowest `priority` and then the same, "cost" the one whose absence is expected to cost least: measured
    seconds of its load times how often it is asked for, for the memory that is needed."""

    idle_ttl: Duration = 0.0
    """Seconds without a request after which a model is unloaded; 0 never. A profile's `ttl` wins."""

    min_residency: Duration = 30.0
    """An instance is not evicted before it was ready for as long as its load took, at most this long, unless
    nothing else makes room."""

    drain_timeout: Duration = 300.0
    """Seconds that an instance which has to make room may go on answering the requests that it has. Beyond
    them it stays, and other room is looked for."""

    defrag_after_cycles: Annotated[int, Field(ge=0)] = 50
    """Loads and unloads in an attached engine after which it is drained and restarted, and loaded with what was in it:
    unasked once nobody has used it for a minute, or at twice as many; 0 never. Its neuron must know its unit."""


class PlacementSection(Section):
    """[placement]: where models are loaded, and who waits how long for that."""

    prefer: Literal["pack", "spread"] = "pack"
    """Which device with room is taken: "pack" the tightest, which keeps large blocks whole; "spread" the emptiest."""

    patience: Duration = 5.0
    """Seconds that a request waits for room which busy models hold before one of them is drained for it."""

    max_waiting: Annotated[int, Field(ge=1)] = 1000
    """Requests that may wait for one model to load; further ones get 429."""

    scale_out_after: Duration = 10.0
    """Seconds for which all slots of a model must be taken before a further instance is started, where its
    `replicas.max` allows one and room is free."""


class NeuronEntry(Section):
    """[[neurons]]: one GPU host."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """What operators call the host."""

    endpoint: BaseUrl
    """URL of the host's neuron."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that profiles can ask for, such as {rack = "a2"}."""

    token: str | None = None
    """Token that its neuron asks for; better in a file or a variable."""

    token_file: Path | None = None
    """File that holds the token; a bare name is looked up among systemd's credentials first."""

    ca: Path | None = None
    """PEM file of the authorities that its certificate may come from. Default: the system's."""

    certificate: Path | None = None
    """PEM file of the certificate to show it, where it asks for one."""

    certificate_key: Path | None = None
    """PEM file of that certificate's key. Default: in `certificate`."""

    @property
    def api_path(self) -> str:
        """Where its engines have their API."""
        return "/v1"


class UpstreamEntry(Section):
    """[[upstreams]]: an OpenAI-compatible server that stands in the fleet as a node without a neuron.

    Its models are listed, routed and balanced beside those of the nodes; nothing is ever loaded or evicted there.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """What operators call it."""

    base_url: BaseUrl
    """Its URL, with or without /v1 at the end."""

    api_path: Annotated[str, Field(pattern=r"^(/[^\s?#]*[^/\s?#])?$")] = "/v1"
    """Path below base_url where its API is. For a provider whose base URL ends otherwise, such as
    https://generativelanguage.googleapis.com/v1beta/openai, give that as base_url and "" here."""

    key: str | None = None
    """Key that is sent to it, never the client's own; better in a file or a variable."""

    key_file: Path | None = None
    """File that holds the key; a bare name is looked up among systemd's credentials first."""

    ca: Path | None = None
    """PEM file of the authorities that its certificate may come from. Default: the system's."""

    engine: Literal["openai", "llamacpp", "mistralrs", "vllm", "sglang", "cortex"] = "openai"
    """What kind of server it is, which decides how chat requests are worded for it."""

    models: tuple[str, ...] = ()
    """Which of its models are offered; with `*` and `?` a pattern. Default: all that it lists. A server without
    /v1/models needs their names here."""

    prefix: str = ""
    """Put before the names of its models, such as "cloud/". Without it a model of the same name elsewhere in the fleet
    shares its requests with this server."""

    context: Annotated[int, Field(ge=1)] | None = None
    """Tokens a request may use, where the server does not tell."""

    parallel: Annotated[int, Field(ge=1, le=4096)] = 16
    """Requests that each of its models computes side by side, as balancing weighs it."""

    refresh: Duration = 15.0
    """How often its models are listed, which is also how it is seen to be there."""

    overflow: bool = False
    """Ask it only while all slots of a model's other instances are taken, or there are none."""

    retries: bool = True
    """Try another instance when a request fails here before its first byte."""

    breaker: bool = True
    """Leave a model of it alone for a while after several failures in a row."""

    @property
    def endpoint(self) -> str:
        """Its URL without the API's path."""
        return self.base_url.removesuffix(self.api_path)


NodeEntry = NeuronEntry | UpstreamEntry
"""What stands in the fleet as a node."""


class GatewayConfig(Section):
    """All of cortex.toml."""

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
        """All that stands in the fleet as a node."""
        return (*self.neurons, *self.upstreams)

    @field_validator("keys")
    @classmethod
    def _keys_differ(cls, keys: tuple[KeyEntry, ...]) -> tuple[KeyEntry, ...]:
        for what, values in (("name", [k.name for k in keys]), ("hash", [k.hash for k in keys])):
            twice = [value for value, n in Counter(values).items() if n > 1]
            if twice:
                raise ValueError(f"two keys have the {what} {twice[0]!r}")
        return keys

    @field_validator("neurons")
    @classmethod
    def _names_differ(cls, neurons: tuple[NeuronEntry, ...]) -> tuple[NeuronEntry, ...]:
        if twice := _repeated(n.name for n in neurons):
            raise ValueError(f"two neurons are called {twice!r}")
        if twice := _repeated(n.endpoint for n in neurons):
            raise ValueError(f"two neurons have the endpoint {twice!r}")
        return neurons

    @field_validator("upstreams")
    @classmethod
    def _upstreams_differ(
        cls, upstreams: tuple[UpstreamEntry, ...], info: ValidationInfo
    ) -> tuple[UpstreamEntry, ...]:
        nodes = (*info.data.get("neurons", ()), *upstreams)
        if twice := _repeated(n.name for n in nodes):
            raise ValueError(f"two nodes are called {twice!r}")
        if twice := _repeated(u.endpoint for u in upstreams):
            raise ValueError(f"two upstreams have the URL {twice!r}")
        return upstreams


def _repeated(values: Iterable[str]) -> str | None:
    return next((value for value, n in Counter(values).items() if n > 1), None)
