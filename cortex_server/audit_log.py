"""The audit trail: what the gateway logs about the fleet's life, kept for operators with who was behind it.

Whatever decides logs it already, by `cortex_common.log.event`; a handler of the standard library's logging keeps
those events. So the trail and the log can't tell different stories, and nobody has to say everything twice.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar

from cortex_common.clock import Clock
from cortex_common.log import level_name
from cortex_common.schema.audit import AuditEntry

KEPT = 1000

LOGS = tuple(
    f"cortex.{part}"
    for part in ("fleet", "keys", "lifecycle", "nodes", "operator", "reload", "tls")
)
"""The loggers whose events make the trail."""

ACTOR: ContextVar[str] = ContextVar("actor", default="cortex")
"""Who is behind what this task does: set where a request is let in, and by whoever speaks for a node."""


class AuditLog(logging.Handler):
    """The latest events; all calls come from the event loop's thread.

    Args:
        clock: entries are numbered from its milliseconds, so that numbers grow over restarts too.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(logging.INFO)
        self.last = int(clock.unix() * 1000)
        self._entries: deque[AuditEntry] = deque(maxlen=KEPT)
        self._listeners: list[Callable[[], None]] = []

    def begin(self) -> None:
        """Keep what is logged from now on, also where the log itself is set to less."""
        for name in LOGS:
            log = logging.getLogger(name)
            log.addHandler(self)
            if not log.isEnabledFor(logging.INFO):
                log.setLevel(logging.INFO)

    def end(self) -> None:
        """Keep no more."""
        for name in LOGS:
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep an event; a line without facts, such as a traceback, is none."""
        facts = getattr(record, "facts", None)
        if facts is None:
            return
        self.last += 1
        self._entries.append(
            AuditEntry(
                id=self.last,
                at=record.created,
                actor=ACTOR.get(),
                event=record.getMessage(),
                level=level_name(record.levelno),
                facts={name: _told(value) for name, value in facts.items()},
            )
        )
        for listener in tuple(self._listeners):
            listener()

    def since(self, number: int) -> tuple[AuditEntry, ...]:
        """The entries after a number that are still kept, the oldest first."""
        return tuple(entry for entry in self._entries if entry.id > number)

    def recall(self, entries: Iterable[AuditEntry]) -> None:
        """Begin with what was kept elsewhere, the oldest first."""
        self._entries.extend(entries)
        if self._entries:
            self.last = max(self.last, self._entries[-1].id)

    def on_entry(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each entry; it must not block."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Undo `on_entry`."""
        self._listeners.remove(listener)


def _told(value: object) -> str:
    if isinstance(value, tuple | list | set | frozenset):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
