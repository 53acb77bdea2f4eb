"""How nodes want to be asked: the secrets and certificates that their entries name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cortex_common.config.gateway import NodeEntry, UpstreamEntry
from cortex_common.config.secret import read_secret
from cortex_common.tls import client_context
from cortex_server.dataplane.pool import NodeAccess

Accesses = Mapping[str, NodeAccess]
"""How each node wants to be asked, by name."""


def accesses(entries: Iterable[NodeEntry], environ: Mapping[str, str]) -> Accesses:
    """Read the secrets and certificates that the entries name.

    Raises:
        ConfigError: one can't be read.
    """
    return {entry.name: _access(entry, environ) for entry in entries}


def _access(entry: NodeEntry, environ: Mapping[str, str]) -> NodeAccess:
    tls = None
    if isinstance(entry, UpstreamEntry):
        if entry.endpoint.startswith("https:"):
            tls = client_context(entry.ca)
        return NodeAccess(tls, read_secret(entry.key, entry.key_file, environ))
    if entry.endpoint.startswith("https:"):
        tls = client_context(entry.ca, entry.certificate, entry.certificate_key)
    return NodeAccess(tls, read_secret(entry.token, entry.token_file, environ))
