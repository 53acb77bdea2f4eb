"""Process file descriptors (Linux 5.3) for any Python build.

A Python built against older kernel headers, such as uv's portable builds, lacks these functions, but the system calls
exist with the same numbers on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PIDFD_SEND_SIGNAL = 424
_PIDFD_OPEN = 434

_libc = ctypes.CDLL(None, use_errno=True)


def pidfd_open(pid: int) -> int:
    """Return a descriptor that becomes readable when the process ends, whether or not it is a child.

    Raises:
        ProcessLookupError: there is no process with that pid.
    """
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    return _syscall(_PIDFD_OPEN, pid, 0)


def pidfd_send_signal(pidfd: int, number: signal.Signals) -> None:
    """Send a signal to the process of a descriptor, never to another process that reuses its pid.

    Raises:
        ProcessLookupError: the process has ended.
    """
    if hasattr(signal, "pidfd_send_signal"):
        signal.pidfd_send_signal(pidfd, number)
    else:
        _syscall(_PIDFD_SEND_SIGNAL, pidfd, number, None, 0)


def _syscall(number: int, *arguments: int | None) -> int:
    values = [None if a is None else ctypes.c_long(a) for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *values))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
