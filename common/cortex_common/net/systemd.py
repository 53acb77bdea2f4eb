"""What a daemon says to systemd and gets from it: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).

Without systemd each of these does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping

from cortex_common.net.sockets import probe

log = logging.getLogger("cortex.systemd")

_FIRST_FD = 3
"""SD_LISTEN_FDS_START."""
_UNREAD_S = 0.5
"""How long to wait for a service manager that reads late; the daemon stands still meanwhile."""


def notify(state: str, environ: Mapping[str, str]) -> None:
    """Tell the service manager how it stands. One that does not listen is no reason to fail.

    Args:
        state: such as "READY=1" or "STOPPING=1"; several on lines of their own.
        environ: of the process.
    """
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_UNREAD_S)
        try:
            # A leading @ stands for the abstract namespace.
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.sendall(state.encode())
        except OSError as error:
            log.warning("%s could not be told to the service manager: %s", state, error)


def watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Seconds between two signs of life, half of what is allowed; None where nobody waits for them."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
    if not usec.isdigit() or int(usec) == 0 or (pid is not None and pid != str(os.getpid())):
        return None
    return int(usec) / 2_000_000


async def keep_alive(environ: Mapping[str, str]) -> None:
    """Give the signs of life that the watchdog waits for; runs until cancelled.

    They come from the event loop, so a loop that hangs is restarted.
    """
    every = watchdog_s(environ)
    while every is not None:
        notify("WATCHDOG=1", environ)
        await asyncio.sleep(every)


def inherited_socket(environ: Mapping[str, str]) -> socket.socket | None:
    """The listening socket that systemd hands over, if any: with socket activation a restart refuses no connection."""
    if environ.get("LISTEN_PID") != str(os.getpid()) or environ.get("LISTEN_FDS", "0") == "0":
        return None
    os.set_inheritable(_FIRST_FD, False)
    sock = socket.socket(fileno=_FIRST_FD)
    probe(sock)
    return sock
