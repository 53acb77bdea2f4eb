"""The audit log: the lifecycle events that the gateway logs, kept for operators together with who caused them.

Code that decides something logs it with `cortex_common.log.event`; this handler of the standard library's logging
records those events. So the audit log and the log always agree, and nothing has to be reported twice.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar

from typing_extensions import override

from cortex_common.clock import Clock
from cortex_common.log import level_name
from cortex_common.schema.audit import AuditEntry

MAX_ENTRIES = 1000

AUDITED_LOGGERS = tuple(
    f"cortex.{part}"
    for part in ("fleet", "keys", "lifecycle", "nodes", "operator", "reload", "tls")
)
"""The loggers whose events are recorded."""

ACTOR: ContextVar[str] = ContextVar("actor", default="cortex")
"""Who caused what the current task does: set when a request is authorized, and by the watcher of a node."""


class AuditLog(logging.Handler):
    """The latest audit entries. All calls come from the event loop's thread.

    Args:
        clock: ids start at its current time in milliseconds, so that they grow across restarts too.

    Attributes:
        last_id: id of the latest entry.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(logging.INFO)
        self.last_id = int(clock.unix() * 1000)
        self._entries: deque[AuditEntry] = deque(maxlen=MAX_ENTRIES)
        self._listeners: list[Callable[[], None]] = []

    def attach(self) -> None:
        """Start to record events, even if the log level hides them from the log itself."""
        for name in AUDITED_LOGGERS:
            logger = logging.getLogger(name)
            logger.addHandler(self)
            if not logger.isEnabledFor(logging.INFO):
                logger.setLevel(logging.INFO)

    def detach(self) -> None:
        """Stop recording."""
        for name in AUDITED_LOGGERS:
            logging.getLogger(name).removeHandler(self)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, "fields", None)
        if fields is None:  # a traceback, for example, is not an event
            return
        self.last_id += 1
        self._entries.append(
            AuditEntry(
                id=self.last_id,
                at=record.created,
                actor=ACTOR.get(),
                event=record.getMessage(),
                level=level_name(record.levelno),
                fields={name: _field_text(value) for name, value in fields.items()},
            )
        )
        for listener in tuple(self._listeners):
            listener()

    def since(self, entry_id: int) -> tuple[AuditEntry, ...]:
        """Return the entries with a greater id that are still kept, oldest first."""
        return tuple(entry for entry in self._entries if entry.id > entry_id)

    def restore(self, entries: Iterable[AuditEntry]) -> None:
        """Add the entries of earlier runs, oldest first."""
        self._entries.extend(entries)
        if self._entries:
            self.last_id = max(self.last_id, self._entries[-1].id)

    def on_entry(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each entry; it must not block."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Undo `on_entry`."""
        self._listeners.remove(listener)


def _field_text(value: object) -> str:
    if isinstance(value, tuple | list | set | frozenset):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
