"""Descriptors of processes, with the functions of this Python and without."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator

import pytest

from neuron_server.process.pidfd import pidfd_open, pidfd_send_signal


@pytest.fixture(params=["as built", "for older systems"])
def sleeper(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[bytes]]:
    """A child, under a Python that has the functions or lacks them."""
    if request.param != "as built":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
        monkeypatch.delattr(signal, "pidfd_send_signal", raising=False)
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


def test_a_process_is_signalled_and_its_end_seen(sleeper):
    """The descriptor is readable from the end on, and then there is nobody to signal."""
    descriptor = pidfd_open(sleeper.pid)
    try:
        assert not select.select([descriptor], [], [], 0)[0]
        pidfd_send_signal(descriptor, signal.SIGTERM)
        assert select.select([descriptor], [], [], 10)[0]
        assert sleeper.wait() == -signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            pidfd_send_signal(descriptor, signal.SIGTERM)
    finally:
        os.close(descriptor)


def test_a_process_that_is_gone_is_told(sleeper):
    """As everywhere else, by an error of that name."""
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(ProcessLookupError):
        pidfd_open(sleeper.pid)
