"""The base class of all configuration tables, and the field types that they share."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict

from cortex_common.config.secrets import has_userinfo


class Section(BaseModel):
    """A TOML table. Unknown keys are errors. The docstring of a field is its text in the settings reference."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


def split_host_port(text: str) -> tuple[str, int]:
    """Split an address such as "0.0.0.0:8000" or "[::]:8000" into host and port.

    Raises:
        ValueError: the text is not an address with a port from 0 to 65535.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not an address like 0.0.0.0:8000 or [::]:8000")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _address(text: str) -> str:
    split_host_port(text)
    return text


def _base_url(text: str) -> str:
    if has_userinfo(text):
        # The URL is in logs, in errors and in the operator API.
        raise ValueError(
            "a URL must not contain a user name or password; use the setting for the key or token"
        )
    if not _is_base_url(text):
        raise ValueError(f"{text!r} is not a URL like http://gpu1.internal:9090")
    return text.rstrip("/")


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        has_host = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port or an IPv6 address
        return False
    has_more = bool(parts.query or parts.fragment) or " " in text or not text.isprintable()
    return has_host and not has_more


_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _origin(text: str) -> str:
    origin = text.lower().rstrip("/")
    scheme, _, authority = origin.partition("://")
    if text != "*" and (not scheme or not authority or set("/*@") & set(authority)):
        raise ValueError(f"{text!r} is not an origin like https://chat.example.org, or *")
    return origin.removesuffix(_DEFAULT_PORTS.get(scheme, ""))  # browsers omit the default port


def _host_name(text: str) -> str:
    name = text.lower()
    if not name.isascii() or not name.removeprefix("*.") or any(c in name[1:] for c in "/:*@ "):
        raise ValueError(f"{text!r} is not a host name like gate.example.org or *.example.org")
    return name


Address = Annotated[str, AfterValidator(_address)]
"""host:port to listen on; port 0 picks a free port."""

BaseUrl = Annotated[str, AfterValidator(_base_url)]
"""http:// or https:// URL, stored without a trailing slash."""

Origin = Annotated[str, AfterValidator(_origin)]
"""Scheme, host and port of a web page, as browsers send it; "*" for any."""

HostName = Annotated[str, AfterValidator(_host_name)]
"""Name of a host, without scheme and port; "*." in front stands for all names below the rest."""
