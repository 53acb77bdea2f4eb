"""Process file descriptors, with and without support in the Python build."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator

import pytest

from neuron_server.process.pidfd import pidfd_open, pidfd_send_signal


@pytest.fixture(params=["built in", "system call"])
def sleeper(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[bytes]]:
    """Provide a child process, with Python's functions or without them."""
    if request.param != "built in":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
        monkeypatch.delattr(signal, "pidfd_send_signal", raising=False)
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


def test_a_process_can_be_signalled_and_waited_for(sleeper):
    """The descriptor becomes readable when the process ends, after which it can't be signalled."""
    descriptor = pidfd_open(sleeper.pid)
    try:
        assert not select.select([descriptor], [], [], 0)[0]
        pidfd_send_signal(descriptor, signal.SIGTERM)
        assert select.select([descriptor], [], [], 60)[0]
        assert sleeper.wait() == -signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            pidfd_send_signal(descriptor, signal.SIGTERM)
    finally:
        os.close(descriptor)


def test_opening_an_ended_process_fails(sleeper):
    """Opening raises ProcessLookupError."""
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(ProcessLookupError):
        pidfd_open(sleeper.pid)
