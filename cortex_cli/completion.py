"""Names for shell completion: answered within a short time limit, and silently empty after any error."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from cortex_cli.client import client_config, target
from cortex_common.errors import CortexError

_TIMEOUT_S = 0.3


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
        request = Request(f"{where.url}/operator/v1/fleet", headers=where.headers)  # noqa: S310 - the operator's URL
        with build_opener(ProxyHandler({})).open(request, timeout=_TIMEOUT_S) as response:
            value = json.load(response)[field]
    except (CortexError, OSError, ValueError, KeyError, TypeError):
        return ()
    return value if isinstance(value, list) else ()
