"""The base class of all configuration tables, and the field types that they share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


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
    if not text.startswith(("http://", "https://")) or len(text.split("//", 1)[1]) == 0:
        raise ValueError(f"{text!r} is not a URL like http://gpu1.internal:9090")
    return text.rstrip("/")


_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _origin(text: str) -> str:
    origin = text.lower().rstrip("/")
    scheme, _, authority = origin.partition("://")
    if text != "*" and (not scheme or not authority or "/" in authority or "*" in authority):
        raise ValueError(f"{text!r} is not an origin like https://chat.example.org, or *")
    return origin.removesuffix(_DEFAULT_PORTS.get(scheme, ""))  # browsers omit the default port


Address = Annotated[str, AfterValidator(_address)]
"""host:port to listen on; port 0 picks a free port."""

BaseUrl = Annotated[str, AfterValidator(_base_url)]
"""http:// or https:// URL, stored without a trailing slash."""

Origin = Annotated[str, AfterValidator(_origin)]
"""Scheme, host and port of a web page, as browsers send it; "*" for any."""
