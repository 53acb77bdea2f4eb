"""The API keys of engines, which keep other programs on the host from using them around keys and limits."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Generator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
from typing_extensions import override

from cortex_common.net.runtime_dir import write_secret
from cortex_common.schema.instances import InstanceId
from neuron_server.process.supervisor import Launch

KEY_FIELD = "{api_key}"
KEY_FILE_FIELD = "{api_key_file}"
"""Texts in the arguments and variables of a launch that stand for the engine's key, and for the file with it."""


class EngineKeys:
    """A random key per instance, in a file that survives a restart of the neuron, as the engine does.

    Args:
        directory: created when it is needed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._by_instance: dict[InstanceId, str] = {}
        self._by_port: dict[int, str] = {}

    def get(self, instance: InstanceId) -> str | None:
        """Return the key of an instance; None if its engine takes none."""
        return self._by_instance.get(instance)

    def apply(self, launch: Launch, instance: InstanceId, port: int) -> Launch:
        """Return a launch with the key of the instance, which is created if there is none; blocks.

        Args:
            launch: returned unchanged if it contains neither field.
            instance: the instance.
            port: port that the engine will listen on.

        Raises:
            OSError: the file can't be written.
        """
        texts = (*launch.argv, *launch.env.values())
        if not any(KEY_FIELD in text or KEY_FILE_FIELD in text for text in texts):
            return launch
        path = self._path(instance)
        key = self._by_instance.get(instance)
        if key is None:
            key = secrets.token_urlsafe(32)
            self._directory.mkdir(mode=0o700, exist_ok=True)
            write_secret(path, key)
        self._remember(instance, port, key)

        def fill(text: str) -> str:
            return text.replace(KEY_FILE_FIELD, str(path)).replace(KEY_FIELD, key)

        return replace(
            launch,
            argv=tuple(map(fill, launch.argv)),
            env={name: fill(value) for name, value in launch.env.items()},
        )

    def restore(self, instance: InstanceId, port: int) -> None:
        """Read the key of an adopted engine again."""
        with suppress(OSError, UnicodeDecodeError):
            self._remember(instance, port, self._path(instance).read_text("utf-8").strip())

    def remove(self, instance: InstanceId) -> None:
        """Forget the key of an instance whose engine has ended."""
        key = self._by_instance.pop(instance, None)
        self._by_port = {port: k for port, k in self._by_port.items() if k != key}
        with suppress(OSError):
            self._path(instance).unlink(missing_ok=True)

    def remove_others(self, adopted: Collection[str]) -> None:
        """Remove the keys of all instances but the adopted ones."""
        for path in self._directory.glob("*.key"):
            if path.stem not in adopted:
                with suppress(OSError):
                    path.unlink()

    def for_port(self, port: int | None) -> str | None:
        """Return the key of the engine on a port; None if it takes none."""
        return None if port is None else self._by_port.get(port)

    def _remember(self, instance: InstanceId, port: int, key: str) -> None:
        self._by_instance[instance] = key
        self._by_port = {p: k for p, k in self._by_port.items() if k != key} | {port: key}

    def _path(self, instance: InstanceId) -> Path:
        return self._directory / f"{instance}.key"


class EngineAuth(httpx.Auth):
    """Adds the engine's key to the neuron's own requests.

    Args:
        keys: the keys.
        host: address that engines listen on.
    """

    def __init__(self, keys: EngineKeys, host: str) -> None:
        self._keys = keys
        self._host = host

    @override
    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        key = self._keys.for_port(request.url.port)
        if key is not None and request.url.host == self._host:
            request.headers["authorization"] = f"Bearer {key}"
        yield request
