"""How nodes want to be asked: the secrets and certificates that their entries name."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cortex_common.config.gateway import NodeEntry, UpstreamEntry
from cortex_common.config.loader import FileStamp, file_stamp
from cortex_common.config.secrets import read_secret, secret_path
from cortex_common.net.tls import client_context, read_certificates
from cortex_common.schema.certificates import Certificate

DEFAULT_API_PATH = "/v1"


@dataclass(frozen=True, slots=True)
class NodeAccess:
    """How requests to one node are authenticated and encrypted.

    Attributes:
        tls: TLS settings with its authorities and certificate; None for the system's.
        token: Token that it requires.
        api_path: See `UpstreamEntry.api_path`.
        certificates: Stamps of the files that `tls` was made from, to recognize replaced ones.
    """

    tls: ssl.SSLContext | None = None
    token: str | None = None
    api_path: str = DEFAULT_API_PATH
    certificates: tuple[FileStamp, ...] = ()

    @property
    def authorization(self) -> bytes | None:
        """Value of the Authorization header."""
        return None if self.token is None else f"Bearer {self.token}".encode()


Accesses = Mapping[str, NodeAccess]
"""How each node wants to be asked, by name."""


def accesses(entries: Iterable[NodeEntry], environ: Mapping[str, str]) -> Accesses:
    """Read the secrets and certificates that the entries name.

    Raises:
        ConfigError: one can't be read.
    """
    return {entry.name: _access(entry, environ) for entry in entries}


def files_of(entries: Iterable[NodeEntry], environ: Mapping[str, str]) -> Iterator[Path]:
    """The files that `accesses` reads."""
    for entry in entries:
        secret = entry.key_file if isinstance(entry, UpstreamEntry) else entry.token_file
        if secret is not None:
            yield secret_path(secret, environ)
        yield from (path for path in _certificates(entry) if path is not None)


def certificates_of(entries: Iterable[NodeEntry]) -> tuple[Certificate, ...]:
    """When the certificates end that the gateway knows nodes by, and those that it shows them."""
    files = [_certificates(entry) for entry in entries]
    return tuple(found for trusted, mine, _ in files for found in read_certificates(mine, trusted))


def _access(entry: NodeEntry, environ: Mapping[str, str]) -> NodeAccess:
    if isinstance(entry, UpstreamEntry):
        secret = read_secret(entry.key, entry.key_file, environ)
    else:
        secret = read_secret(entry.token, entry.token_file, environ)
    files = _certificates(entry)
    # Looked at before they are read: what is replaced meanwhile differs the next time.
    stamps = tuple(map(file_stamp, files))
    tls = client_context(*files) if entry.endpoint.startswith("https:") else None
    return NodeAccess(tls, secret, entry.api_path, stamps)


def _certificates(entry: NodeEntry) -> tuple[Path | None, Path | None, Path | None]:
    """Authorities, own certificate and its key."""
    if isinstance(entry, UpstreamEntry):
        return entry.ca, None, None
    return entry.ca, entry.certificate, entry.certificate_key
