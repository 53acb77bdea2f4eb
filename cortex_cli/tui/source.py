"""Where the screen's snapshots come from: a gateway, or a recorded session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Protocol, TextIO

from pydantic import ValidationError

from cortex_cli.watch import Lost, follow
from cortex_common.errors import ConfigError
from cortex_common.fleet import SNAPSHOT, FleetSnapshot


class Source(Protocol):
    """An endless account of the fleet."""

    def follow(self) -> AsyncGenerator[FleetSnapshot | Lost, None]:
        """Each change, and each loss of the one who tells."""
        ...


class GatewaySource:
    """A gateway's event stream.

    Args:
        gateway: URL or context; see `client.target`.
        record: also write every snapshot there, one JSON object a line.
    """

    def __init__(self, gateway: str | None, record: TextIO | None = None) -> None:
        self._gateway = gateway
        self._record = record

    async def follow(self) -> AsyncGenerator[FleetSnapshot | Lost, None]:
        """See `Source.follow`."""
        async for seen in follow(self._gateway):
            if self._record is not None and isinstance(seen, FleetSnapshot):
                self._record.write(SNAPSHOT.dump_json(seen).decode() + "\n")
                self._record.flush()
            yield seen


class ReplaySource:
    """A recorded session, at the pace at which it was recorded; it ends on its last snapshot.

    Args:
        path: written by `GatewaySource`.
        speed: how many times faster.
    """

    def __init__(self, path: Path, speed: float = 1.0) -> None:
        self._snapshots = read_recording(path)
        self._speed = speed

    async def follow(self) -> AsyncGenerator[FleetSnapshot | Lost, None]:
        """See `Source.follow`."""
        before: FleetSnapshot | None = None
        for snapshot in self._snapshots:
            if before is not None:
                await asyncio.sleep(max(0.0, snapshot.at - before.at) / self._speed)
            yield snapshot
            before = snapshot
        await asyncio.Event().wait()


def read_recording(path: Path) -> list[FleetSnapshot]:
    """The snapshots of a recorded session.

    Raises:
        ConfigError: the file can't be read or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [SNAPSHOT.validate_python(json.loads(line)) for line in lines if line.strip()]
    except OSError as failed:
        raise ConfigError(f"{path}: {failed.strerror or failed}") from failed
    except (ValueError, ValidationError) as failed:
        raise ConfigError(f"{path} is no recording of `cortex top --record`") from failed
    if not found:
        raise ConfigError(f"{path} holds no snapshot")
    return found
