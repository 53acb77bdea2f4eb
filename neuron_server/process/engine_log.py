"""An engine's output: a file that engine and neuron share, kept within bounds, with tail and follow.

Engines write to the file themselves, through a descriptor opened for appending: they must be able to go on when
their neuron is gone, which a pipe would not allow. So the file is cut in place, and its last part kept beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import BinaryIO

from cortex_common.errors import LoadFailed

LIMIT_BYTES = 4 * 1024 * 1024
_TAIL_BYTES = 64 * 1024
_FOLLOW_EVERY_S = 0.2


class EngineLog:
    """The log of one instance: `<id>.log`, and `<id>.log.1` with what was before."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.path = path
        self._old = path.with_name(path.name + ".1")
        self._limit = limit_bytes

    def open_for_engine(self) -> BinaryIO:
        """The file for an engine's stdout and stderr.

        Raises:
            LoadFailed: it can't be made.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as failed:
            why = failed.strerror or failed
            raise LoadFailed(f"the engine's log {self.path} can't be written: {why}") from failed
        return os.fdopen(descriptor, "wb", buffering=0)

    def trim(self) -> None:
        """Move the content aside when it is over the limit; lines written in that instant may be lost."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size > self._limit:
                with contextlib.suppress(OSError):  # on a full disk the newer half is worth more
                    self._old.write_bytes(self._end(self.path, self._limit))
                os.truncate(self.path, 0)

    def tail(self, lines: int) -> tuple[str, ...]:
        """The last lines, oldest first."""
        text = self._end(self.path, _TAIL_BYTES)
        if len(text) < _TAIL_BYTES:
            text = self._end(self._old, _TAIL_BYTES - len(text)) + text
        return tuple(text.decode("utf-8", "replace").splitlines()[-lines:] if lines else ())

    def size(self) -> int:
        """Bytes in the file now; 0 when there is none."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    async def follow(self, position: int, over: Callable[[], bool]) -> AsyncGenerator[bytes]:
        """What is written after a position in the file, as it comes, until it is over or the file is removed."""
        seen = False
        while ((here := self.path.exists()) or not seen) and not over():
            seen = seen or here
            size = self.size()
            if size < position:  # it was trimmed
                position = 0
            if size > position:
                chunk = self._read(self.path, position, _TAIL_BYTES)
                position += len(chunk)
                yield chunk
            else:
                await asyncio.sleep(_FOLLOW_EVERY_S)

    def remove(self) -> None:
        """Forget everything."""
        with contextlib.suppress(OSError):  # a file system that became read-only keeps it
            self.path.unlink(missing_ok=True)
            self._old.unlink(missing_ok=True)

    @classmethod
    def _end(cls, path: Path, most: int) -> bytes:
        try:
            start = max(0, path.stat().st_size - most)
        except FileNotFoundError:
            return b""
        return cls._read(path, start, most)

    @staticmethod
    def _read(path: Path, start: int, most: int) -> bytes:
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(most)
        except FileNotFoundError:
            return b""
