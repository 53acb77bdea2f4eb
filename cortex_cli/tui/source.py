"""Sources of the screen's data: a gateway, or a recorded session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Protocol, TextIO

from pydantic import ValidationError
from typing_extensions import override

from cortex_cli.watch import ConnectionLost, fleet_updates
from cortex_common.errors import ConfigError
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import SNAPSHOT, FleetSnapshot

Update = FleetSnapshot | AuditEntry | ConnectionLost


class Source(Protocol):
    """An endless stream of updates about the fleet."""

    def follow(self) -> AsyncGenerator[Update, None]:
        """Yield each change, each audit entry, and each loss of the connection."""
        ...


class GatewaySource(Source):
    """The event stream of a gateway.

    Args:
        gateway: URL or context; see `client.target`.
        record: file that every snapshot and entry is written to, one JSON object per line.
        pause_s: see `watch.fleet_updates`.
    """

    def __init__(
        self, gateway: str | None, record: TextIO | None = None, pause_s: float = 0.25
    ) -> None:
        self._gateway = gateway
        self._pause_s = pause_s
        self._record = record

    @override
    async def follow(self) -> AsyncGenerator[Update, None]:
        stream = fleet_updates(self._gateway, replay=True, pause_s=self._pause_s)
        async with aclosing(stream) as updates:
            async for update in updates:
                if self._record is not None and not isinstance(update, ConnectionLost):
                    self._record.write(_line(update) + "\n")
                    self._record.flush()
                yield update


class ReplaySource(Source):
    """A recorded session, played at its original pace; it stops at its last snapshot.

    Args:
        path: file written by `GatewaySource`.
        speed: factor by which playback is faster.
    """

    def __init__(self, path: Path, speed: float = 1.0) -> None:
        self._updates = read_recording(path)
        self._speed = speed

    @override
    async def follow(self) -> AsyncGenerator[Update, None]:
        previous: float | None = None
        for update in self._updates:
            if isinstance(update, FleetSnapshot):
                if previous is not None:
                    await asyncio.sleep(max(0.0, update.at - previous) / self._speed)
                previous = update.at
            yield update
        await asyncio.Event().wait()


def _line(update: FleetSnapshot | AuditEntry) -> str:
    if isinstance(update, AuditEntry):
        return update.model_dump_json()
    return SNAPSHOT.dump_json(update).decode()


def _parse_line(line: str) -> FleetSnapshot | AuditEntry:
    value = json.loads(line)
    is_entry = isinstance(value, dict) and "event" in value
    return AuditEntry.model_validate(value) if is_entry else SNAPSHOT.validate_python(value)


def read_recording(path: Path) -> list[FleetSnapshot | AuditEntry]:
    """Return the updates of a recorded session; at least one is a snapshot.

    Raises:
        ConfigError: the file can't be read or is not a recording.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        updates = [_parse_line(line) for line in lines if line.strip()]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"{path} is not a recording of `cortex top --record`") from error
    if not any(isinstance(update, FleetSnapshot) for update in updates):
        raise ConfigError(f"{path} contains no snapshot")
    return updates
