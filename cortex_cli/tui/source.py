"""Where the screen's snapshots come from: a gateway, or a recorded session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Protocol, TextIO

from pydantic import ValidationError

from cortex_cli.watch import Lost, news
from cortex_common.errors import ConfigError
from cortex_common.schema.audit import AuditEntry
from cortex_common.schema.fleet import SNAPSHOT, FleetSnapshot

Seen = FleetSnapshot | AuditEntry | Lost


class Source(Protocol):
    """An endless account of the fleet."""

    def follow(self) -> AsyncGenerator[Seen, None]:
        """Each change, each entry of the trail, and each loss of the one who tells."""
        ...


class GatewaySource:
    """A gateway's event stream.

    Args:
        gateway: URL or context; see `client.target`.
        record: also write every snapshot and entry there, one JSON object a line.
        pause_s: as often as anybody looks; see `watch.news`.
    """

    def __init__(
        self, gateway: str | None, record: TextIO | None = None, pause_s: float = 0.25
    ) -> None:
        self._gateway = gateway
        self._pause_s = pause_s
        self._record = record

    async def follow(self) -> AsyncGenerator[Seen, None]:
        """See `Source.follow`."""
        async with aclosing(news(self._gateway, again=True, pause_s=self._pause_s)) as told:
            async for seen in told:
                if self._record is not None and not isinstance(seen, Lost):
                    self._record.write(_line(seen) + "\n")
                    self._record.flush()
                yield seen


class ReplaySource:
    """A recorded session, at the pace at which it was recorded; it ends on its last snapshot.

    Args:
        path: written by `GatewaySource`.
        speed: how many times faster.
    """

    def __init__(self, path: Path, speed: float = 1.0) -> None:
        self._seen = read_recording(path)
        self._speed = speed

    async def follow(self) -> AsyncGenerator[Seen, None]:
        """See `Source.follow`."""
        before: float | None = None
        for seen in self._seen:
            if isinstance(seen, FleetSnapshot):
                if before is not None:
                    await asyncio.sleep(max(0.0, seen.at - before) / self._speed)
                before = seen.at
            yield seen
        await asyncio.Event().wait()


def _line(seen: FleetSnapshot | AuditEntry) -> str:
    if isinstance(seen, AuditEntry):
        return seen.model_dump_json()
    return SNAPSHOT.dump_json(seen).decode()


def _read_line(line: str) -> FleetSnapshot | AuditEntry:
    found = json.loads(line)
    is_entry = isinstance(found, dict) and "event" in found
    return AuditEntry.model_validate(found) if is_entry else SNAPSHOT.validate_python(found)


def read_recording(path: Path) -> list[FleetSnapshot | AuditEntry]:
    """What was seen in a recorded session; at least one snapshot.

    Raises:
        ConfigError: the file can't be read or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [_read_line(line) for line in lines if line.strip()]
    except OSError as failed:
        raise ConfigError(f"{path}: {failed.strerror or failed}") from failed
    except (ValueError, ValidationError) as failed:
        raise ConfigError(f"{path} is no recording of `cortex top --record`") from failed
    if not any(isinstance(seen, FleetSnapshot) for seen in found):
        raise ConfigError(f"{path} holds no snapshot")
    return found
