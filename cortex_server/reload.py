"""Reads the configuration again while the gateway runs: all of it, or nothing."""

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
from cortex_common.config.loader import Loaded, Stamp, stamp_of
from cortex_common.errors import ConfigError, CortexError
from cortex_common.log import event
from cortex_common.schema.fleet import SettingsView
from cortex_common.schema.operations import Reloaded
from cortex_server.fleet.credentials import files_of

log = logging.getLogger("cortex.reload")

LOOK_EVERY_S = 1.0
"""How often the files are looked at; a change is acted on once they have stood still for as long."""

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
"""What is read at start alone."""

Files = tuple[Loaded[GatewayConfig], Loaded[Catalogue]]
Stamps = Mapping[Path, Stamp]


class Reloader:
    """See the module.

    Args:
        files: what the gateway runs by now.
        read: reads them again. Raises: ConfigError.
        use: makes the gateway run by new settings. Raises: ConfigError, and then has changed nothing.
        clock: for when they were read.

    Attributes:
        files: what the gateway runs by now.
        view: how that stands to the files on the disk.
    """

    def __init__(
        self,
        files: Files,
        read: Callable[[], Files],
        use: Callable[[GatewayConfig, Catalogue], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self.files = files
        self.view = SettingsView(clock.unix())
        self._begun_by = files
        self._clock = clock
        self._read = read
        self._use = use
        self._lock = asyncio.Lock()
        self._seen = self._looked()

    async def reload(self) -> Reloaded:
        """Read the files and run by them.

        Raises:
            ConfigError: they are wrong; nothing has changed.
        """
        async with self._lock:
            before, self._seen = self._seen, self._looked()
            try:
                files = await asyncio.to_thread(self._read)
                await self._use(files[0].value, files[1].value)
            except ConfigError as failed:
                self.view = replace(self.view, refused=failed.message)
                event(log, "reload_refused", logging.ERROR, reason=failed.message)
                raise
            changed = (*_differences(self.files, files), *self._replaced(before))
            self.files = files
            later = tuple(k for k in _differences(self._begun_by, files) if k in NEEDS_RESTART)
            self.view = SettingsView(self._clock.unix(), restart=later)
            # What is read now may name other files. Those of before were looked at before they were read.
            self._seen = {p: self._seen.get(p, s) for p, s in self._looked().items()}
        restart = tuple(key for key in changed if key in NEEDS_RESTART)
        event(log, "reloaded", changed=", ".join(changed) or "nothing", restart=", ".join(restart))
        return Reloaded(changed=changed, restart=restart)

    async def watch(self) -> None:
        """Reload when a file has changed; runs until cancelled."""
        before = self._seen
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = self._looked()
            # An editor may write in several steps: two looks alike are a file that is whole.
            if now != self._seen and now == before:
                await self.try_reload()
            before = now

    async def try_reload(self) -> None:
        """`reload`, for callers whom nobody hears: the log has told what is wrong."""
        try:
            await self.reload()
        except CortexError:
            return
        except Exception:
            log.exception("reload_failed")

    def _looked(self) -> Stamps:
        """The configuration's files, and those that it names for its nodes."""
        own = (loaded.path for loaded in self.files if loaded.path is not None)
        named = files_of(self.files[0].value.nodes, os.environ)
        return {path: stamp_of(path) for path in (*own, *named)}

    def _replaced(self, before: Stamps) -> Iterator[str]:
        """Files of secrets and certificates that hold something else than before."""
        for path in files_of(self.files[0].value.nodes, os.environ):
            if before.get(path) != self._seen.get(path):
                yield str(path)


def _differences(old: Files, new: Files) -> Iterator[str]:
    """What differs: keys of [gateway], and the other tables as wholes."""
    before, after = old[0].value, new[0].value
    for key in type(before.gateway).model_fields:
        if getattr(before.gateway, key) != getattr(after.gateway, key):
            yield f"gateway.{key}"
    for table in type(before).model_fields:
        if table != "gateway" and getattr(before, table) != getattr(after, table):
            yield table
    if old[1].value != new[1].value:
        yield "models"
