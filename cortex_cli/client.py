"""Which gateway a command talks to, and with which key."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cortex_common.config.base import BaseUrl, Section
from cortex_common.config.loader import load
from cortex_common.errors import AuthenticationFailed, ConfigError, NotFound, nearest_names

if TYPE_CHECKING:
    from cortex_common.client.gateway import OperatorClient

T = TypeVar("T")

DEFAULT_GATEWAY = "http://127.0.0.1:8000"


class ContextEntry(Section):
    """[contexts.NAME]: one gateway that an operator works with."""

    gateway: BaseUrl
    """URL of the gateway."""

    key_file: Path | None = None
    """File that holds the key; readable by its owner alone."""


class ClientConfig(Section):
    """~/.config/cortex/config.toml: an operator's gateways."""

    context: str | None = None
    """The context that commands use unless told otherwise."""

    contexts: dict[str, ContextEntry] = {}  # noqa: RUF012 - pydantic copies defaults
    """The gateways by name."""

    keys: dict[str, str] = {}  # noqa: RUF012 - as above
    """Keys of `cortex top` by what they do, as {logs = "ctrl+l"}; docs/reference/keys.md has the names."""


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway and the key for it.

    Attributes:
        url: without a slash at its end.
        key: bearer token; None where the gateway asks for none.
        context: the context that named it, if one did.
    """

    url: str
    key: str | None = None
    context: str | None = None


def client_config_path(environ: Mapping[str, str]) -> Path:
    """Where an operator's contexts are kept (XDG base directory specification)."""
    base = environ.get("XDG_CONFIG_HOME") or str(
        Path(environ.get("HOME", "~")).expanduser() / ".config"
    )
    return Path(base) / "cortex" / "config.toml"


def client_config(environ: Mapping[str, str]) -> ClientConfig:
    """The operator's contexts; none without a file.

    Raises:
        ConfigError: the file is wrong.
    """
    path = client_config_path(environ)
    return load(ClientConfig, path if path.exists() else None, {}).value


def target(gateway: str | None, environ: Mapping[str, str]) -> Target:
    """The gateway that --gateway, CORTEX_GATEWAY_URL or the current context names, in this order.

    Args:
        gateway: a URL or the name of a context.
        environ: the environment; its CORTEX_API_KEY or CORTEX_API_KEY_FILE wins over the context's key.

    Raises:
        NotFound: there is no such context.
        ConfigError: the file of contexts or of the key can't be read.
        AuthenticationFailed: the key can't be one.
    """
    named = gateway or environ.get("CORTEX_GATEWAY_URL") or None
    if named is not None and "://" in named:
        return Target(named.rstrip("/"), _key(environ, None))
    config = client_config(environ)
    name = named or config.context
    if name is None:
        return Target(DEFAULT_GATEWAY, _key(environ, None))
    entry = config.contexts.get(name)
    if entry is None:
        close = nearest_names(name, config.contexts)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else "give a URL like http://gateway.internal:8000"
        )
        raise NotFound(
            f"there is no context {name!r} in {client_config_path(environ)}", hints=(hint,)
        )
    return Target(entry.gateway, _key(environ, entry.key_file), name)


def _key(environ: Mapping[str, str], key_file: Path | None) -> str | None:
    if key := environ.get("CORTEX_API_KEY"):
        return _checked(key, "CORTEX_API_KEY")
    from_environ = environ.get("CORTEX_API_KEY_FILE")
    path = Path(from_environ) if from_environ else key_file
    if path is None:
        return None
    try:
        return _checked(path.expanduser().read_text(encoding="utf-8", errors="replace"), str(path))
    except OSError as failed:
        raise ConfigError(f"the key file {path} can't be read: {failed.strerror}") from failed


def _checked(key: str, where: str) -> str:
    key = key.strip()
    if key.isascii() and key.isprintable():
        return key
    raise AuthenticationFailed(
        f"what is in {where} is no key: it has characters that no key has",
        hints=("copy the key once more, and nothing else",),
    )


def connect(gateway: str | None) -> OperatorClient:
    """A client of the gateway that is meant; see `target`."""
    # httpx is most of a command's start; completion and --help do without.
    from cortex_common.client.gateway import OperatorClient

    where = target(gateway, os.environ)
    return OperatorClient(where.url, who="the gateway", token=where.key)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end."""
    return asyncio.run(work)
