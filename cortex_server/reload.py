"""Reloads the configuration while the gateway runs: all of it, or nothing."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cortex_common.clock import Clock
from cortex_common.config.catalogue import Catalogue
from cortex_common.config.gateway import GatewayConfig
from cortex_common.config.loader import FileStamp, LoadedConfig, file_stamp
from cortex_common.errors import ConfigError, CortexError
from cortex_common.log import event
from cortex_common.schema.fleet import SettingsView
from cortex_common.schema.operations import ReloadResult
from cortex_server.fleet.credentials import credential_files

log = logging.getLogger("cortex.reload")

CHECK_INTERVAL_S = 1.0
"""Interval at which files are checked for changes. A change is loaded once the files are stable for as long."""

NEEDS_RESTART = frozenset(
    {
        "gateway.listen",
        "gateway.metrics_listen",
        "gateway.state_dir",
        "gateway.models",
        "gateway.reuse_port",
        "tls",
    }
)
"""Settings that are read at startup only."""

Files = tuple[LoadedConfig[GatewayConfig], LoadedConfig[Catalogue]]
Stamps = Mapping[Path, FileStamp]


class Reloader:
    """Reloads the configuration on demand, and when its files change.

    Args:
        files: the configuration that the gateway was started with.
        read: reads the files again. Raises: ConfigError.
        apply: applies new settings to the gateway. Raises: ConfigError, after which nothing has changed.
        clock: for the time of the last reload.
        stamps: `file_stamps` of the files, from before the gateway read the secrets in them.

    Attributes:
        files: the configuration in force.
        view: the state of the configuration as operators see it.
    """

    def __init__(
        self,
        files: Files,
        read: Callable[[], Files],
        apply: Callable[[GatewayConfig, Catalogue], Awaitable[None]],
        clock: Clock,
        stamps: Stamps,
    ) -> None:
        self.files = files
        self.view = SettingsView(clock.unix())
        self._started_with = files
        self._clock = clock
        self._read = read
        self._apply = apply
        self._lock = asyncio.Lock()
        self._stamps = stamps

    async def reload(self) -> ReloadResult:
        """Read the files and apply them.

        Raises:
            ConfigError: the files are invalid; nothing has changed.
        """
        async with self._lock:
            previous, self._stamps = self._stamps, self._current_stamps()
            try:
                files = await asyncio.to_thread(self._read)
                await self._apply(files[0].value, files[1].value)
            except ConfigError as error:
                self.view = replace(self.view, reload_error=error.message)
                event(log, "config_rejected", logging.ERROR, reason=error.message)
                raise
            changed = (*_changed_settings(self.files, files), *self._changed_secrets(previous))
            self.files = files
            pending = tuple(
                key for key in _changed_settings(self._started_with, files) if key in NEEDS_RESTART
            )
            self.view = SettingsView(self._clock.unix(), restart=pending)
            # The new settings can name other files. The stamps of known files were taken before they were read.
            current = self._current_stamps()
            self._stamps = {path: self._stamps.get(path, current[path]) for path in current}
        restart = tuple(key for key in changed if key in NEEDS_RESTART)
        event(
            log,
            "config_reloaded",
            changed=", ".join(changed) or "nothing",
            restart=", ".join(restart),
        )
        return ReloadResult(changed=changed, restart=restart)

    async def watch(self) -> None:
        """Reload when a file has changed; runs until cancelled."""
        previous = self._stamps
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            current = self._current_stamps()
            # Editors can write in several steps: a file is complete once it is the same in two checks.
            if current != self._stamps and current == previous:
                await self.try_reload()
            previous = current

    async def try_reload(self) -> None:
        """Reload, without raising: `reload` has logged what is wrong."""
        try:
            await self.reload()
        except CortexError:
            return
        except Exception:
            log.exception("reload_failed")

    def _current_stamps(self) -> Stamps:
        return file_stamps(self.files)

    def _changed_secrets(self, previous: Stamps) -> Iterator[str]:
        """Yield the paths of secrets and certificates whose content has changed."""
        for path in credential_files(self.files[0].value.nodes, os.environ):
            if previous.get(path) != self._stamps.get(path):
                yield str(path)


def file_stamps(files: Files) -> Stamps:
    """Return the stamps of the configuration files and of the files of secrets and certificates that they name."""
    own = (loaded.path for loaded in files if loaded.path is not None)
    named = credential_files(files[0].value.nodes, os.environ)
    return {path: file_stamp(path) for path in (*own, *named)}


def _changed_settings(old: Files, new: Files) -> Iterator[str]:
    """Yield what differs: keys of [gateway], names of the other tables, and "models"."""
    before, after = old[0].value, new[0].value
    for key in type(before.gateway).model_fields:
        if getattr(before.gateway, key) != getattr(after.gateway, key):
            yield f"gateway.{key}"
    for table in type(before).model_fields:
        if table != "gateway" and getattr(before, table) != getattr(after, table):
            yield table
    if old[1].value != new[1].value:
        yield "models"
