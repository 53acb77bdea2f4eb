"""Selection of the gateway and the key that a command uses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cortex_common.config.base import BaseUrl, Section
from cortex_common.config.loader import load
from cortex_common.config.secrets import has_userinfo
from cortex_common.errors import AuthenticationFailed, ConfigError, NotFound, nearest_names
from cortex_common.schema.fleet import FleetSnapshot

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

T = TypeVar("T")

DEFAULT_GATEWAY = "http://127.0.0.1:8000"


class ContextEntry(Section):
    """[contexts.NAME]: a gateway."""

    gateway: BaseUrl
    """URL of the gateway."""

    key_file: Path | None = None
    """File that contains the key; readable by its owner only."""


class ClientConfig(Section):
    """~/.config/cortex/config.toml: settings of the command."""

    context: str | None = None
    """Context that commands use by default."""

    contexts: dict[str, ContextEntry] = {}  # noqa: RUF012 - pydantic copies defaults
    """Gateways by name."""

    keys: dict[str, str] = {}  # noqa: RUF012 - as above
    """Keys of `cortex top` by action, as {logs = "ctrl+l"}; docs/reference/keys.md lists the actions."""


@dataclass(frozen=True, slots=True)
class GatewayTarget:
    """A gateway and the key for it.

    Attributes:
        url: base URL without a trailing slash.
        key: bearer token; None for a gateway without authentication.
        context: name of the context that it comes from, if any.
    """

    url: str
    key: str | None = None
    context: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers that authenticate requests."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}


def client_config_path(environ: Mapping[str, str]) -> Path:
    """Return the path of the client's configuration file (XDG base directory specification)."""
    base = environ.get("XDG_CONFIG_HOME") or str(
        Path(environ.get("HOME", "~")).expanduser() / ".config"
    )
    return Path(base) / "cortex" / "config.toml"


def client_config(environ: Mapping[str, str]) -> ClientConfig:
    """Return the client's configuration; defaults if there is no file.

    Raises:
        ConfigError: the file is invalid.
    """
    path = client_config_path(environ)
    return load(ClientConfig, path if path.exists() else None, {}).value


def target(gateway: str | None, environ: Mapping[str, str]) -> GatewayTarget:
    """Return the gateway named by --gateway, CORTEX_GATEWAY_URL or the current context, in this order.

    Args:
        gateway: a URL or the name of a context.
        environ: the environment; its CORTEX_API_KEY or CORTEX_API_KEY_FILE takes precedence over the context's key.

    Raises:
        NotFound: there is no such context.
        ConfigError: the configuration file or the key file can't be read.
        AuthenticationFailed: the key contains invalid characters.
    """
    selected = gateway or environ.get("CORTEX_GATEWAY_URL") or None
    if selected is not None and "://" in selected:
        if has_userinfo(selected):
            raise ConfigError(
                "the gateway's URL must not contain a user name or password",
                hints=("set CORTEX_API_KEY or CORTEX_API_KEY_FILE instead",),
            )
        return GatewayTarget(selected.rstrip("/"), _read_key(environ, None))
    config = client_config(environ)
    name = selected or config.context
    if name is None:
        return GatewayTarget(DEFAULT_GATEWAY, _read_key(environ, None))
    entry = config.contexts.get(name)
    if entry is None:
        close = nearest_names(name, config.contexts)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else "use a URL such as http://gateway.internal:8000"
        )
        raise NotFound(
            f"there is no context {name!r} in {client_config_path(environ)}", hints=(hint,)
        )
    return GatewayTarget(entry.gateway, _read_key(environ, entry.key_file), name)


def _read_key(environ: Mapping[str, str], key_file: Path | None) -> str | None:
    if key := environ.get("CORTEX_API_KEY"):
        return _validate_key(key, "CORTEX_API_KEY")
    environ_file = environ.get("CORTEX_API_KEY_FILE")
    path = Path(environ_file) if environ_file else key_file
    if path is None:
        return None
    try:
        key = path.expanduser().read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"the key file {path} can't be read: {error.strerror}") from error
    return _validate_key(key, str(path))


def _validate_key(key: str, origin: str) -> str:
    key = key.strip()
    if key.isascii() and key.isprintable():
        return key
    raise AuthenticationFailed(
        f"the key in {origin} contains characters that are not allowed in keys",
        hints=("copy the key again, without surrounding text",),
    )


def connect(gateway: str | None) -> OperatorClient:
    """Return a client of the selected gateway; see `target`."""
    # httpx takes most of the start-up time; completion and --help do not need it.
    from cortex_common.client.gateway import OperatorClient

    where = target(gateway, os.environ)
    return OperatorClient(where.url, who="the gateway", token=where.key)


async def fetch_fleet(gateway: str | None) -> FleetSnapshot:
    """Return the current state of the fleet."""
    async with connect(gateway) as client:
        return await client.fleet()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to completion."""
    return asyncio.run(coroutine)
