"""The runtime directories of daemons: where programs on the same host find their sockets and tokens.

A gateway has a Unix socket there for its operator API, and a neuron a file with its token. File permissions decide who
can use them, because no address proves anything about a caller.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir
from urllib.parse import urlsplit

from cortex_common.errors import ConfigError
from cortex_common.net.trusted_hosts import is_this_host

_SYSTEM_DIRS = (Path("/run/cortex/gateway"), Path("/run/cortex/neuron"))
"""The directories that the packaged units create: see RuntimeDirectory= in systemd.exec(5)."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


def create_runtime_dir(environ: Mapping[str, str]) -> Path:
    """Return the directory for this process, created if it is missing.

    Raises:
        ConfigError: it can't be created, or others can write to it.
    """
    directory = _own_dir(environ)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"can't create {directory}: {error.strerror}") from error
    if not _is_private(directory):
        raise ConfigError(f"{directory} belongs to another user, or others can write to it")
    return directory


def neuron_token_file(port: int) -> str:
    """Return the name of the file with the token of the neuron that listens on a port."""
    return f"neuron-{port}.token"


def operator_socket_file(port: int) -> str:
    """Return the name of this process's socket for the operator API of the gateway that listens on a port."""
    return f"operator-{port}.{os.getpid()}.sock"


def write_secret(path: Path, secret: str, mode: int = 0o600) -> None:
    """Write a file atomically that no one else can read at any time.

    Raises:
        OSError: it can't be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{secret}\n")
        os.fchmod(descriptor, mode)
    temporary.replace(path)


def port_on_this_host(url: str) -> int | None:
    """Return the port of a URL if its host is this host; None otherwise."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    return port if parts.hostname and is_this_host(parts.hostname) else None


def neuron_token_paths(endpoint: str, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return where the token of a neuron on this host can be; nothing for one on another host.

    Args:
        endpoint: base URL of the neuron.
        environ: environment of the process.
    """
    port = port_on_this_host(endpoint)
    if port is None:
        return ()
    return tuple(directory / neuron_token_file(port) for directory in _readable_dirs(environ))


def read_neuron_token(endpoint: str, environ: Mapping[str, str]) -> str | None:
    """Return the token of a neuron on this host; None if this process can't read one."""
    for path in neuron_token_paths(endpoint, environ):
        if _is_private(path.parent):
            with suppress(OSError, UnicodeDecodeError):
                return path.read_text(encoding="utf-8").strip()
    return None


def operator_sockets(port: int, environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the operator sockets of the gateways on this host that listen on a port, the most recent first."""
    for directory in _readable_dirs(environ):
        with suppress(OSError):
            if _is_private(directory):
                found = directory.glob(f"operator-{port}.*.sock")
                yield from sorted(found, key=lambda path: -path.lstat().st_mtime)


def _own_dir(environ: Mapping[str, str]) -> Path:
    if given := environ.get("RUNTIME_DIRECTORY"):  # set by systemd
        return Path(given.partition(":")[0])
    return _user_dir(environ)


def _user_dir(environ: Mapping[str, str]) -> Path:
    """Return the directory of this user (XDG base directory specification), below /tmp if there is no session."""
    base = environ.get("XDG_RUNTIME_DIR")
    if base and Path(base).is_dir():
        return Path(base) / "cortex"
    return _fallback_dir()


def _fallback_dir() -> Path:
    return Path(gettempdir()) / f"cortex-{os.geteuid()}"


def _readable_dirs(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the directories of this user's daemons, which can have been started within a session or not."""
    session = Path(f"/run/user/{os.geteuid()}/cortex")
    own = (_own_dir(environ), _user_dir(environ), session, _fallback_dir())
    return tuple(dict.fromkeys((*own, *_SYSTEM_DIRS)))


def _is_private(directory: Path) -> bool:
    """Return whether a directory belongs to this user or is below /run/cortex, and no one else can write to it."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    trusted = directory in _SYSTEM_DIRS or found.st_uid in {0, os.geteuid()}
    return trusted and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022
