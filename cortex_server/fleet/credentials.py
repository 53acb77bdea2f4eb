"""The secrets and TLS settings that the gateway authenticates to nodes with, read from their configuration."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cortex_common.config.gateway import NeuronEntry, NodeEntry, UpstreamEntry
from cortex_common.config.loader import FileStamp, file_stamp
from cortex_common.config.secrets import read_secret, secret_path
from cortex_common.net.runtime_dir import neuron_token_paths, read_neuron_token
from cortex_common.net.tls import client_context, read_certificates
from cortex_common.schema.certificates import Certificate

DEFAULT_API_PATH = "/v1"
"""Path of the OpenAI API, unless an upstream's entry sets another."""


@dataclass(frozen=True, slots=True)
class NodeCredentials:
    """How to connect and authenticate to one node.

    Attributes:
        tls: context with the node's certificate authorities and the client certificate; None for the system's
            authorities.
        token: bearer token, where the node requires one.
        api_path: path of the node's API; see `UpstreamEntry.api_path`.
        certificates: stamps of the files that `tls` was made from; they differ once a file is replaced.
    """

    tls: ssl.SSLContext | None = None
    token: str | None = None
    api_path: str = DEFAULT_API_PATH
    certificates: tuple[FileStamp, ...] = ()

    @property
    def authorization(self) -> bytes | None:
        """Value of the Authorization header; None where the node requires no token."""
        return None if self.token is None else f"Bearer {self.token}".encode()


CredentialsByNode = Mapping[str, NodeCredentials]
"""Credentials by node name."""


def load_credentials(entries: Iterable[NodeEntry], environ: Mapping[str, str]) -> CredentialsByNode:
    """Read the secrets and certificates that the entries name.

    Raises:
        ConfigError: a file can't be read.
    """
    return {entry.name: _load(entry, environ) for entry in entries}


def credential_files(entries: Iterable[NodeEntry], environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files that `load_credentials` reads, and those that it would read if they existed."""
    for entry in entries:
        secret = entry.key_file if isinstance(entry, UpstreamEntry) else entry.token_file
        if secret is not None:
            yield secret_path(secret, environ)
        elif isinstance(entry, NeuronEntry) and entry.token is None:
            yield from neuron_token_paths(entry.endpoint, environ)
        yield from (path for path in _certificate_files(entry) if path is not None)


def node_certificates(entries: Iterable[NodeEntry]) -> tuple[Certificate, ...]:
    """Return the certificates that the gateway trusts for nodes, and those that it presents to them."""
    files = [_certificate_files(entry) for entry in entries]
    return tuple(found for ca, own, _ in files for found in read_certificates(own, ca))


def _load(entry: NodeEntry, environ: Mapping[str, str]) -> NodeCredentials:
    if isinstance(entry, UpstreamEntry):
        secret = read_secret(entry.key, entry.key_file, environ)
    else:
        secret = read_secret(entry.token, entry.token_file, environ)
        if secret is None:
            secret = read_neuron_token(entry.endpoint, environ)
    files = _certificate_files(entry)
    # Stamped before they are read, so that a file replaced in between counts as changed at the next reload.
    stamps = tuple(map(file_stamp, files))
    tls = client_context(*files) if entry.endpoint.startswith("https:") else None
    return NodeCredentials(tls, secret, entry.api_path, stamps)


def _certificate_files(entry: NodeEntry) -> tuple[Path | None, Path | None, Path | None]:
    """Return the files of the authorities, the client certificate, and its key."""
    if isinstance(entry, UpstreamEntry):
        return entry.ca, None, None
    return entry.ca, entry.certificate, entry.certificate_key
