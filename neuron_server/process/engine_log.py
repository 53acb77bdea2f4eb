"""The log of an engine: a size-limited file that the engine writes to, with tail and follow.

Engines write to the file directly, through a descriptor opened for appending, because they must be able to keep running
without their neuron, which a pipe would not allow. The file is therefore truncated in place after its end was copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncGenerator, Callable, Collection
from pathlib import Path
from typing import BinaryIO

from cortex_common.config.secrets import hide_values
from cortex_common.errors import LoadFailed
from cortex_common.log import event

log = logging.getLogger(__name__)

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

MAX_BYTES = 4 * 1024 * 1024
_MAX_TAIL_BYTES = 64 * 1024
_FOLLOW_INTERVAL_S = 0.2


class EngineLog:
    """The log of one instance: `<id>.log`, and `<id>.log.1` with the output before that.

    Args:
        path: the file.
        max_bytes: size from which it is rotated.
        secrets: hidden wherever the log is read; many engines log their arguments.
    """

    def __init__(
        self, path: Path, max_bytes: int = MAX_BYTES, secrets: Collection[str] = ()
    ) -> None:
        self.path = path
        self._secrets = secrets
        self._rotated = path.with_name(path.name + ".1")
        self._max_bytes = max_bytes

    def open_for_engine(self) -> BinaryIO:
        """Open the file for an engine's stdout and stderr; on a full or read-only disk, the output is discarded.

        Raises:
            LoadFailed: it can't be created for another reason.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            if error.errno in _NO_ROOM:
                event(log, "engine_log_discarded", logging.WARNING, path=self.path, reason=error)
                return Path(os.devnull).open("wb", buffering=0)
            reason = error.strerror or error
            raise LoadFailed(f"the engine's log {self.path} can't be written: {reason}") from error
        return os.fdopen(descriptor, "wb", buffering=0)

    def trim(self) -> None:
        """Rotate the file if it exceeds the limit; lines written in that instant can be lost."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size > self._max_bytes:
                with contextlib.suppress(
                    OSError
                ):  # on a full disk, room for new output is worth more
                    self._rotated.write_bytes(self._read_end(self.path, self._max_bytes))
                os.truncate(self.path, 0)

    def tail(self, lines: int) -> tuple[str, ...]:
        """Return the last lines, oldest first."""
        text = self._read_end(self.path, _MAX_TAIL_BYTES)
        if len(text) < _MAX_TAIL_BYTES:
            text = self._read_end(self._rotated, _MAX_TAIL_BYTES - len(text)) + text
        shown = hide_values(text.decode("utf-8", "replace"), self._secrets)
        return tuple(shown.splitlines()[-lines:] if lines else ())

    def size(self) -> int:
        """Return the size of the file in bytes; 0 if it does not exist."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    async def follow(self, position: int, stopped: Callable[[], bool]) -> AsyncGenerator[bytes]:
        """Yield what is written after a position in the file, until `stopped` or the file is removed."""
        existed = False
        while ((exists := self.path.exists()) or not existed) and not stopped():
            existed = existed or exists
            size = self.size()
            if size < position:  # the file was trimmed
                position = 0
            if size > position:
                chunk = self._read(self.path, position, _MAX_TAIL_BYTES)
                if len(chunk) < _MAX_TAIL_BYTES and self._secrets:
                    # Whole lines, so that no secret is cut in two; what follows a longer line is taken as it is.
                    chunk = chunk[: chunk.rfind(b"\n") + 1] or chunk
                position += len(chunk)
                shown = hide_values(chunk.decode("utf-8", "surrogateescape"), self._secrets)
                yield shown.encode("utf-8", "surrogateescape")
            else:
                await asyncio.sleep(_FOLLOW_INTERVAL_S)

    def remove(self) -> None:
        """Remove the files."""
        with contextlib.suppress(OSError):  # the file system may have become read-only
            self.path.unlink(missing_ok=True)
            self._rotated.unlink(missing_ok=True)

    @classmethod
    def _read_end(cls, path: Path, max_bytes: int) -> bytes:
        try:
            start = max(0, path.stat().st_size - max_bytes)
        except FileNotFoundError:
            return b""
        return cls._read(path, start, max_bytes)

    @staticmethod
    def _read(path: Path, start: int, max_bytes: int) -> bytes:
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(max_bytes)
        except FileNotFoundError:
            return b""
