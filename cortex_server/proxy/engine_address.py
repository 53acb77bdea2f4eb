"""Addresses of engines: where requests go, with the credentials and TLS settings of their node."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from cortex_http.address import Address, ParsedUrl, parse_url
from cortex_server.fleet.credentials import DEFAULT_API_PATH, NodeCredentials

_API_PATH = DEFAULT_API_PATH.encode()

_NO_ACCESS = NodeCredentials()


@dataclass(frozen=True, slots=True, eq=False)
class EngineAddress(Address):
    """Where an engine listens.

    Attributes:
        authorization: Value of the Authorization header, if the node requires a token.
        api_path: Path that takes the place of /v1.
        targets: Request targets of the routes used so far, see `target`.
    """

    authorization: bytes | None = field(default=None, repr=False)
    api_path: bytes = _API_PATH
    targets: dict[str, bytes] = field(default_factory=dict, repr=False)

    def target(self, route: str) -> bytes:
        """Return the request target of one of the gateway's routes, and keep it in `targets`."""
        path = route.encode()
        if path.startswith(_API_PATH):
            path = self.api_path + path.removeprefix(_API_PATH)
        found = self.targets[route] = self.prefix + path
        return found

    @classmethod
    def create(
        cls, url: ParsedUrl, access: NodeCredentials = _NO_ACCESS, api_key: str | None = None
    ) -> EngineAddress:
        """Return the address of an engine on a node; `api_key` takes the place of the node's credentials."""
        own = None if api_key is None else f"Bearer {api_key}".encode()
        return cls(
            url.host,
            url.port,
            url.prefix,
            url.authority,
            (access.tls or ssl.create_default_context()) if url.https else None,
            url.uds,
            authorization=own or access.authorization,
            api_path=access.api_path.encode(),
        )


class EngineAddresses:
    """Addresses by URL, one for each engine."""

    def __init__(self) -> None:
        self._addresses: dict[str, EngineAddress] = {}
        self._keys: dict[str, str | None] = {}
        self._nodes: dict[str, NodeCredentials] = {}

    def use_nodes(self, nodes: Mapping[str, NodeCredentials]) -> None:
        """Replace the access settings of nodes, given by the base URL of their engines."""
        # The longest first: one base URL can be below another on the same host, with another key.
        self._nodes = {base: nodes[base] for base in sorted(nodes, key=len, reverse=True)}
        self._addresses.clear()

    def find(self, url: str, api_key: str | None = None) -> EngineAddress:
        """Return the address of the engine at a URL.

        Args:
            url: base URL of the engine.
            api_key: key of the engine itself; None for the credentials of its node.

        Raises:
            ValueError: It is not a URL that requests can be sent to.
        """
        found = self._addresses.get(url)
        # Another engine can use the port of one that has ended.
        if found is None or self._keys.get(url) != api_key:
            found = self._addresses[url] = self._create(url, api_key)
            self._keys[url] = api_key
        return found

    def _create(self, url: str, api_key: str | None) -> EngineAddress:
        parsed = parse_url(url)
        for base, access in self._nodes.items():
            if url == base or url.startswith(f"{base}/"):
                return EngineAddress.create(parsed, access, api_key)
        return EngineAddress.create(parsed, api_key=api_key)
