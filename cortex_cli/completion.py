"""Names for shell completion: answered within a short time limit, and silently empty after any error."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from cortex_cli.client import GatewayTarget, client_config, target
from cortex_common.errors import CortexError
from cortex_common.net.runtime_dir import operator_sockets, port_on_this_host

_TIMEOUT_S = 0.3
_PATH = "/operator/v1/fleet"


def models(incomplete: str) -> list[str]:
    """Return names and aliases of models with this prefix."""
    names = (name for m in _fetch("models") for name in (m["id"], *m.get("aliases", ())))
    return [name for name in names if name.startswith(incomplete)]


def nodes(incomplete: str) -> list[str]:
    """Return names of nodes with this prefix."""
    return [n["name"] for n in _fetch("nodes") if n["name"].startswith(incomplete)]


def log_sources(incomplete: str) -> list[str]:
    """Return names with this prefix that have a log: the gateway, nodes and models."""
    return (
        [n for n in ("gateway",) if n.startswith(incomplete)]
        + nodes(incomplete)
        + models(incomplete)
    )


def contexts(incomplete: str) -> list[str]:
    """Return names of contexts with this prefix."""
    try:
        return [name for name in client_config(os.environ).contexts if name.startswith(incomplete)]
    except CortexError:
        return []


def _fetch(field: str) -> Iterable[Any]:
    """Return a list of the fleet as JSON, by urllib: importing httpx would exceed the time limit."""
    try:
        where = target(os.environ.get("CORTEX_GATEWAY_URL"), os.environ)
        value = (_over_socket(where) or _over_tcp(where))[field]
    except (CortexError, OSError, HTTPException, ValueError, KeyError, TypeError):
        return ()
    return value if isinstance(value, list) else ()


def _over_tcp(where: GatewayTarget) -> Any:
    request = Request(f"{where.url}{_PATH}", headers=where.headers)  # noqa: S310 - the operator's URL
    with build_opener(ProxyHandler({})).open(request, timeout=_TIMEOUT_S) as response:
        return json.load(response)


def _over_socket(where: GatewayTarget) -> Any:
    """Return the fleet over the operator socket of a gateway on this host; None if there is none, or with a key."""
    port = None if where.key else port_on_this_host(where.url)
    for path in () if port is None else operator_sockets(port, os.environ):
        connection = HTTPConnection("localhost", timeout=_TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(_TIMEOUT_S)
        with closing(connection), suppress(ConnectionError, FileNotFoundError):
            connection.sock.connect(str(path))
            connection.request("GET", _PATH)
            return json.load(connection.getresponse())
    return None
