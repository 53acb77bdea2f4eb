"""Descriptors of processes (Linux 5.3), whichever Python runs.

A Python that was built for the headers of older systems, as uv's portable ones are, lacks the functions; the kernel has
the calls all the same, by the same numbers on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PIDFD_SEND_SIGNAL = 424
_PIDFD_OPEN = 434

_libc = ctypes.CDLL(None, use_errno=True)


def pidfd_open(pid: int) -> int:
    """A descriptor that becomes readable when the process ends, whether or not it is our child.

    Raises:
        ProcessLookupError: there is none of that id.
    """
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    return _syscall(_PIDFD_OPEN, pid, 0)


def pidfd_send_signal(pidfd: int, number: signal.Signals) -> None:
    """Send a signal to the process of a descriptor, and never to one that got its id since.

    Raises:
        ProcessLookupError: it has ended.
    """
    if hasattr(signal, "pidfd_send_signal"):
        signal.pidfd_send_signal(pidfd, number)
    else:
        _syscall(_PIDFD_SEND_SIGNAL, pidfd, number, None, 0)


def _syscall(number: int, *arguments: int | None) -> int:
    words = [None if a is None else ctypes.c_long(a) for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
