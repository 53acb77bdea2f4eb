"""Names for shell completion: asked for quickly, and never worth an error."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from cortex_cli.client import target
from cortex_common.errors import CortexError

_BUDGET_S = 0.3


def models(incomplete: str) -> list[str]:
    """Names and aliases of models that begin so."""
    names = (name for m in _part("models") for name in (m["id"], *m.get("aliases", ())))
    return [name for name in names if name.startswith(incomplete)]


def nodes(incomplete: str) -> list[str]:
    """Names of nodes that begin so."""
    return [n["name"] for n in _part("nodes") if n["name"].startswith(incomplete)]


def loggers(incomplete: str) -> list[str]:
    """Whatever has a log: the gateway, nodes and models."""
    return (
        [n for n in ("gateway",) if n.startswith(incomplete)]
        + nodes(incomplete)
        + models(incomplete)
    )


def contexts(incomplete: str) -> list[str]:
    """Names of contexts that begin so."""
    from cortex_cli.client import client_config

    try:
        return [name for name in client_config(os.environ).contexts if name.startswith(incomplete)]
    except CortexError:
        return []


def _part(name: str) -> Iterable[Any]:
    """A part of the fleet as JSON, by urllib: loading httpx alone takes most of the time there is."""
    try:
        where = target(os.environ.get("CORTEX_GATEWAY_URL"), os.environ)
        headers = {"authorization": f"Bearer {where.key}"} if where.key else {}
        request = Request(f"{where.url}/operator/v1/fleet", headers=headers)  # noqa: S310 - the operator's URL
        with build_opener(ProxyHandler({})).open(request, timeout=_BUDGET_S) as answer:
            found = json.load(answer)[name]
    except (CortexError, OSError, ValueError, KeyError, TypeError):
        return ()
    return found if isinstance(found, list) else ()
