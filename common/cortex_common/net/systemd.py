"""The systemd protocols of a daemon: sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3).

Without systemd, every function does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger("cortex.systemd")

_FIRST_FD = 3
"""SD_LISTEN_FDS_START."""
_SEND_TIMEOUT_S = 0.5
"""How long to block on a service manager that does not read; the event loop is blocked meanwhile."""


def notify(state: str, environ: Mapping[str, str]) -> None:
    """Send a state to the service manager. If it can't be reached, log a warning and continue.

    Args:
        state: such as "READY=1" or "STOPPING=1"; several are separated by newlines.
        environ: environment of the process.
    """
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_SEND_TIMEOUT_S)
        try:
            # A leading @ denotes the abstract namespace.
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.sendall(state.encode())
        except OSError as error:
            log.warning("could not send %s to the service manager: %s", state, error)


def watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    """Return the seconds between two keep-alives, half of the watchdog timeout; None without a watchdog."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
    if not usec.isdigit() or int(usec) == 0 or (pid is not None and pid != str(os.getpid())):
        return None
    return int(usec) / 2_000_000


async def run_watchdog(environ: Mapping[str, str]) -> None:
    """Send the keep-alives that the systemd watchdog expects, until cancelled.

    They are sent from the event loop, so that a process whose loop hangs is restarted.
    """
    interval = watchdog_interval_s(environ)
    while interval is not None:
        notify("WATCHDOG=1", environ)
        await asyncio.sleep(interval)


def inherited_socket(environ: Mapping[str, str]) -> socket.socket | None:
    """Return the listening socket passed by systemd, if any.

    With socket activation, no connection is refused during a restart.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()) or environ.get("LISTEN_FDS", "0") == "0":
        return None
    os.set_inheritable(_FIRST_FD, False)
    return socket.socket(fileno=_FIRST_FD)
